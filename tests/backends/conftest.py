"""Fixtures of kept programs."""

import sys
from collections.abc import Iterator
from typing import Any

import pytest

from shaped import ScalarTrainer
from shaped.backends import program
from tests.backends.projects import HELPER, PROJECT, Project, X


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    folder = tmp_path_factory.mktemp("project")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        project = Project(folder)
        trainer = ScalarTrainer(project.module.loss, project.params(), backend="compiled")
        trainer.step(X, lr=0.1)

        assert trainer.save_program(project.file) == []

        project.after = trainer.params.w.detach().clone()  # type: ignore[attr-defined]
        yield project
        for name in ("kept_helper", "kept_project"):
            sys.modules.pop(name, None)


@pytest.fixture
def project(kept: Project) -> Project:
    kept.write(PROJECT, HELPER)
    return kept


@pytest.fixture
def nothing_is_proved(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any, **named: Any) -> Any:
        raise AssertionError("something was proved or lowered")

    monkeypatch.setattr(program, "prove_setting", refuse)
    monkeypatch.setattr("shaped.backends.compiled.lower", refuse)
