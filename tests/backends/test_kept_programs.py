"""A kept program: what another process takes up, and everything that must make it a miss."""

import functools
import json
import re
import subprocess
import sys
import zipfile
from collections.abc import Callable
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

import shaped
from shaped import ExecutorError, ParamList, ScalarTrainer, ShapeError, StateError
from shaped.backends import DisagreementError, archive
from shaped.backends.outlines import outline, outlined
from shaped.backends.samples import FACTOR
from shaped.optim import AdamW, Lion
from tests.backends.projects import CHANGES, HELPER, PROJECT, Project, X, wrong_numbers
from tests.models import batch, mlp, mlp_loss


def stepped(project: Project, batches: list[tuple[torch.Tensor, float]]) -> torch.Tensor:
    """The parameter after steps of torch's own SGD, each with a batch and a gain."""
    params = project.params()
    plain = torch.optim.SGD([params.w], lr=0.1)
    for x, gain in batches:
        project.module.CONFIG.gain = gain
        plain.zero_grad()
        project.module.loss(params, x).backward()
        plain.step()
    return params.w.detach()


@pytest.mark.usefixtures("nothing_is_proved")
def test_a_kept_program_takes_the_same_step_without_a_proof_or_a_compiler(project: Project) -> None:
    trainer = project.load()
    trainer.step(X, lr=0.1)

    assert torch.equal(trainer.params.w, project.after)  # type: ignore[attr-defined]
    assert [(e.how, e.held) for e in trainer.executors] == [("kept", True)]
    assert "ScalarTrainer(loss : Line" in repr(trainer)


class Noisy(ParamList):
    w: Float[Tensor, "n m"]


def noisy_loss(p: Noisy, x: Float[Tensor, "batch n"]) -> Float[Tensor, ""]:
    h = F.dropout(x @ p.w, 0.5)
    return (h + 0.1 * torch.randn_like(h)).square().mean()


@pytest.mark.slow
def test_a_kept_program_draws_what_it_drew_when_it_was_compiled(tmp_path: Path, request: Any) -> None:
    losses, hows = [], []
    for start in range(3):
        params = Noisy(w=torch.linspace(-1.0, 1.0, 12).reshape(4, 3))
        keep: bool | Path = tmp_path if start else False  # compiled by itself, compiled and kept, kept
        trainer = ScalarTrainer(noisy_loss, params, backend="compiled", keep=keep)
        torch.manual_seed(7)
        losses.append([trainer.step(X, lr=0.1).item() for _ in range(3)])
        hows.append([(e.how, e.held, e.note) for e in trainer.executors])
        if start:
            request.getfixturevalue("nothing_is_proved")

    assert losses[0] == losses[1] == losses[2]
    assert len({*losses[0]}) == 3
    assert hows == [[("inductor", True, "")], [("inductor", True, "")], [("kept", True, "")]]


def looking_loss(p: Noisy, x: Float[Tensor, "batch n"]) -> Float[Tensor, ""]:
    return (x @ p.w).square().mean() * (x.weight if hasattr(x, "weight") else 1.0)


@pytest.mark.slow
def test_a_kept_program_looks_for_what_its_loss_looks_for_on_inputs(tmp_path: Path, request: Any) -> None:
    for how in ("inductor", "kept"):
        trainer = ScalarTrainer(looking_loss, Noisy(w=torch.ones(4, 3)), backend="compiled", keep=tmp_path)
        trainer.step(X, lr=0.1)
        assert [e.how for e in trainer.executors] == [how]
        weighed = X.clone()
        weighed.weight = 2.0  # type: ignore[attr-defined]
        with pytest.raises(ExecutorError, match=r"`looking_loss` reads `x.weight`"):
            trainer.step(weighed, lr=0.1)
        request.getfixturevalue("nothing_is_proved")


@pytest.mark.usefixtures("interpreted")
def test_what_a_kept_program_does_not_have_is_proved_as_ever(project: Project) -> None:
    trainer = project.load()
    for size in (3, 2):
        trainer.step(X[:size], lr=0.1)
    expected = stepped(project, [(X[:3], 2.0), (X[:2], 2.0)])

    assert [e.how for e in trainer.executors] == ["kept", "python"]
    assert torch.allclose(trainer.params.w, expected, rtol=1e-5)
    assert str(trainer.proof).split(" in ")[0].startswith("loss : Line")
    with pytest.raises(ShapeError):
        trainer.step(X[:, :3], lr=0.1)


@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize("optimizer", [AdamW, Lion])
def test_the_step_of_another_optimizer_is_not_taken_from_the_file(project: Project, optimizer: type) -> None:
    params = project.params()
    given = {"backend": "compiled", "optimizer": optimizer(params, lr=0.1)}
    trainer = ScalarTrainer.load_program(project.file, project.module.loss, params, **given)
    trainer.train_step(X)

    assert [e.how for e in trainer.executors] == ["python"]


@pytest.mark.parametrize("what", CHANGES)
def test_a_program_that_was_changed_is_not_taken(project: Project, what: str) -> None:
    project.write(*CHANGES[what](PROJECT, HELPER))

    with pytest.raises(StateError, match=r"^the kept program `.*line\.program` is not used: "):
        project.load()


@pytest.mark.parametrize(
    "change",
    [
        lambda m: setattr(m.CONFIG, "gain", 3.0),
        lambda m: setattr(m.Config, "beta", 0.1),
        lambda m: m.RATES.append(1.0),
        lambda m: m.LEVEL.set(2.0),
        lambda m: setattr(m, "LEVEL", ContextVar("LEVEL", default=2.0)),
        lambda m: setattr(m, "LEVEL", ContextVar("LEVEL")),
        lambda m: setattr(m, "raised", m.raising(3)),
        lambda m: setattr(m, "raised", lambda x: x),
        lambda m: setattr(m.bend, "__defaults__", (0.5,)),
        lambda m: setattr(m.kept_helper, "BETA", 0.1),
        lambda m: setattr(m, "TABLE", torch.ones(4, dtype=torch.float64)),
        lambda m: setattr(m.Config, "__call__", lambda self, x: x),
    ],
)
def test_a_program_that_reaches_other_values_is_not_taken(project: Project, change: Callable[[Any], None]) -> None:
    change(project.module)

    with pytest.raises(StateError, match="is not used"):
        project.load()


def test_a_refusal_names_what_is_other_than_it_was(project: Project) -> None:
    project.module.CONFIG.gain = 3.0

    with pytest.raises(StateError) as caught:
        project.load()

    assert str(caught.value) == (
        f"the kept program `{project.file}` is not used: `CONFIG.gain` is not as when it was kept: 2.0 then, 3.0 now"
    )


@pytest.mark.parametrize(
    "options", [{"max_norm": 1.0}, {"autocast": "bf16"}, {"nonfinite": "skip"}, {"assume": ["n % 2 == 0"]},
                {"samples": "batch"}, {"sizes": "static"}, {"allow_unused": True}],
)  # fmt: skip
def test_a_trainer_with_other_options_does_not_take_it(project: Project, options: dict[str, Any]) -> None:
    with pytest.raises(StateError, match="is not used: `options"):
        project.load(**options)


def test_another_version_of_an_installed_package_is_a_miss(
    project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "something-2.0.dist-info").mkdir()
    monkeypatch.syspath_prepend(str(tmp_path))

    with pytest.raises(StateError, match="`the installed packages` is not as when it was kept"):
        project.load()


@pytest.mark.parametrize(
    ("where", "value"),
    [
        ("torch.__version__", "0.1"),
        ("torch.version.git_version", "0"),
        ("sys.version", "4.0"),
        ("shaped.backends.surroundings._processor", lambda: ["another"]),
        ("torch.backends.cpu.get_cpu_capability", lambda: "another"),
        ("torch.get_num_threads", lambda: 77),
        ("torch.get_float32_matmul_precision", lambda: "high"),
        ("shaped.backends.surroundings._of_folder", lambda folder: "another"),
        ("torch.library._impls", {"aten/tanh/CPU"}),
        ("torch.nn.functional.relu", lambda x: x),
        ("torch.tanh", torch.sin),
        ("torch.nn.functional.relu", torch.nn.functional.relu6),
        ("torch.nn.functional.elu.__defaults__", (0.5, False)),
        ("torch.nn.functional.gelu", functools.partial(torch.nn.functional.leaky_relu)),
        ("torch.nn.modules.module._global_forward_hooks", {0: lambda module, given, result: result * 2}),
    ],
)
def test_other_surroundings_are_a_miss(
    project: Project, monkeypatch: pytest.MonkeyPatch, where: str, value: object
) -> None:
    monkeypatch.setattr(where, value)

    with pytest.raises(StateError, match="not as when it was kept"):
        project.load()


@pytest.mark.usefixtures("interpreted")
def test_a_value_that_changes_after_loading_is_proved_anew(project: Project) -> None:
    trainer = project.load()
    for gain in (2.0, 3.0, 2.0):
        project.module.CONFIG.gain = gain
        trainer.step(X, lr=0.1)

    assert [(e.how, e.calls) for e in trainer.executors] == [("kept", 2), ("python", 1)]
    assert torch.allclose(trainer.params.w, stepped(project, [(X, 2.0), (X, 3.0), (X, 2.0)]), rtol=1e-5)


@pytest.mark.usefixtures("interpreted")
def test_a_context_variable_that_is_set_after_loading_is_proved_anew(project: Project) -> None:
    trainer = project.load()
    trainer.step(X, lr=0.1)
    token = project.module.LEVEL.set(3.0)
    trainer.step(X, lr=0.1)
    project.module.LEVEL.reset(token)
    trainer.step(X, lr=0.1)

    assert [(e.how, e.calls) for e in trainer.executors] == [("kept", 2), ("python", 1)]


@pytest.mark.usefixtures("nothing_is_proved")
def test_a_tensor_outside_is_followed_by_a_kept_program(project: Project) -> None:
    trainer = project.load()
    project.module.TABLE = torch.full((4,), 2.0)
    half = trainer.step(X, lr=0.0)
    project.module.TABLE = torch.ones(4)

    assert torch.allclose(half / 2, trainer.step(X, lr=0.0), rtol=1e-6)


@pytest.mark.slow
def test_code_that_gives_other_numbers_is_found_at_the_first_batch(project: Project, tmp_path: Path) -> None:
    archive.write(tmp_path / "wrong", *wrong_numbers(project.file))
    trainer = project.load(tmp_path / "wrong")

    with pytest.raises(DisagreementError):
        trainer.step(X, lr=0.1)

    assert torch.equal(trainer.params.w, project.params().w)


def test_a_damaged_file_is_refused(project: Project, tmp_path: Path) -> None:
    whole, file = project.file.read_bytes(), tmp_path / "damaged"
    damaged = [b"", whole[:-1], whole[: len(whole) // 2], b"PK" + whole]
    damaged += [whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :] for at in range(40, len(whole), len(whole) // 40)]
    for content in damaged:
        file.write_bytes(content)
        file.chmod(0o600)
        try:
            archive.read(file)
        except ValueError:
            pass
        else:  # a bit that no program reads, such as a date
            assert archive.read(file) == archive.read(project.file)
        if content in damaged[:4] and content != damaged[3]:
            with pytest.raises(StateError, match="damaged"):
                project.load(file)


def test_a_file_that_others_may_write_to_is_refused(project: Project, tmp_path: Path) -> None:
    file = tmp_path / "open"
    file.write_bytes(project.file.read_bytes())
    file.chmod(0o666)

    with pytest.raises(StateError, match="others may write to it, and what is in it would be run: chmod go-w"):
        project.load(file)
    with pytest.raises(StateError, match="No such file"):
        project.load(tmp_path / "nothing")


def test_a_file_of_another_kind_is_refused(project: Project, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as file:
        file.writestr("about.json", "{}")
    (tmp_path / "other.zip").chmod(0o600)

    with pytest.raises(StateError, match="no kept program"):
        project.load(tmp_path / "other.zip")


def test_a_program_is_kept_again_by_who_took_it_up(project: Project, tmp_path: Path) -> None:
    trainer = project.load()
    trainer.step(X, lr=0.1)

    assert trainer.save_program(tmp_path / "again") == []
    assert archive.read(tmp_path / "again") == archive.read(project.file)


@pytest.mark.usefixtures("nothing_is_proved")
def test_code_that_was_replaced_after_its_trace_is_not_kept_as_what_was_traced(
    project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = project.load()
    trainer.step(X, lr=0.1)
    monkeypatch.setattr(project.module.bend, "__code__", (lambda x, by, more: x).__code__)

    with pytest.raises(ValueError, match="is not kept: nothing was compiled and held against eager as yet"):
        trainer.save_program(tmp_path / "nothing")


def test_what_values_say_of_the_count_of_a_batch_is_kept() -> None:
    trainer = ScalarTrainer(mlp_loss, mlp())
    x, y = batch()
    y[0] = -100
    case = trainer._program.admit([x, y])
    kept = outlined(json.loads(json.dumps(outline(case.sketch)))).meta[FACTOR]

    assert case.samples * kept.of(trainer._program.plain, [x, y]) == trainer.count(x, y) == 4


@pytest.mark.usefixtures("interpreted")
def test_what_cannot_be_kept_is_said(project: Project, tmp_path: Path) -> None:
    trainer = ScalarTrainer(project.module.loss, project.params(), backend="compiled")
    with pytest.raises(ValueError, match="`loss` is not kept: nothing was compiled"):
        trainer.save_program(tmp_path / "nothing")
    trainer.step(X, lr=0.1)

    with pytest.raises(ValueError, match="there is no C\\+\\+ compiler"):
        trainer.save_program(tmp_path / "nothing")
    with pytest.raises(ValueError, match="the eager backend compiles nothing"):
        trainer.with_backend("eager").save_program(tmp_path / "nothing")
    assert not (tmp_path / "nothing").exists()


OWN = """
import sys
import torch
from shaped.backends.kernels import KeptCode
assert not any(hasattr(torch.ops.shaped, name) for name in sys.argv[1:])
for name in sys.argv[1:]:
    KeptCode(f"import torch; call = torch.ops.shaped.{name}.default", {}).load()
"""


def test_kept_code_may_name_each_operation_of_ours_before_anything_was_traced() -> None:
    sources = (path.read_text() for path in Path(shaped.__file__).parent.rglob("*.py"))
    every = {name for source in sources for name in re.findall(r"\bops\.shaped\.(\w+)\.default", source)}
    assert {"recurrent", "pack", "aligned", "product"} <= every
    subprocess.run([sys.executable, "-c", OWN, *sorted(every)], check=True)
