"""The job tabular: folds beside scikit-learn's, chosen without their test rows, resumable fold by fold."""

from pathlib import Path

import pytest
import torch

from shaped import ShapedError
from shaped.recipes import Settings, tabular


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"TABLES": ("wine",), "FOLDS": 2, "TRIALS": 3, "EPOCHS": 20, "HIDDEN": 8}.items():
        monkeypatch.setattr(tabular, name, value)


@pytest.mark.usefixtures("short")
def test_the_job_cross_validates_beside_scikit_learn_and_resumes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    threads = torch.get_num_threads()
    first = tabular.train(Settings("eager", out=tmp_path))
    printed = capsys.readouterr().out

    assert first.figures["wine/accuracy"] > 0.8
    assert first.figures["wine/sklearn"] > 0.9
    assert 1 <= first.figures["wine/epochs"] <= 20
    assert "proved for all batch, features, hidden, classes >= 1" in printed
    assert [line.split()[0] for line in first.files[0].read_text().splitlines()] == [
        "wine:", "fold", "0", "1", "mean", "deviation",
    ]  # fmt: skip
    assert torch.get_num_threads() == threads
    with pytest.raises(ShapedError, match="has finished folds: go on from them with --resume"):
        tabular.train(Settings("eager", out=tmp_path))
    monkeypatch.setattr(tabular, "search", None)  # finished folds are read, not made again
    again = tabular.train(Settings("eager", out=tmp_path, resume=True))

    assert {k: v for k, v in again.figures.items() if k != "seconds"} == {
        k: v for k, v in first.figures.items() if k != "seconds"
    }


@pytest.mark.slow
def test_the_whole_job_is_within_a_point_of_scikit_learn(tmp_path: Path) -> None:
    figures = tabular.train(Settings("eager", out=tmp_path)).figures

    for name in ("breast_cancer", "wine"):
        assert figures[f"{name}/accuracy"] > figures[f"{name}/sklearn"] - 0.01
