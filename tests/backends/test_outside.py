"""What a loss reads from outside: both backends follow it, or say that they do not."""

import inspect
import math
import warnings
from collections import defaultdict
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from shaped import ExecutorError, ParamList, ProofError, ScalarTrainer, ShapeError

pytestmark = pytest.mark.usefixtures("interpreted")
Scalar = Float[Tensor, ""]
X = torch.ones(2, 3)


class P(ParamList):
    w: Float[Tensor, " n"]


@dataclass
class Config:
    beta: float = 0.0
    step: int = 0


teacher, weight, flag = torch.zeros(()), 0.0, False
CONFIG, OBJECT, ARRAY = {"beta": 0.0, "step": 0.0}, Config(), np.zeros(2)
SPACE, LIST, TEACHERS = SimpleNamespace(teacher=torch.zeros(3), config=OBJECT), [0.0, 0.0], [torch.zeros(3)]
NET = nn.Linear(3, 1)


def scale(k: float = 0.0) -> float:
    return k


def enclosed() -> tuple[Callable[..., Any], Callable[[float], None]]:
    beta = 0.0

    def loss(p: P, x: Float[Tensor, "b n"]) -> Scalar:
        return (x @ p.w).mean() * 0 + beta

    def change(value: float) -> None:
        nonlocal beta
        beta = value

    return loss, change


def enclosed_value() -> tuple[Callable[[], float], Callable[[float], None]]:
    value = 0.0

    def read() -> float:
        return value

    def change(new: float) -> None:
        nonlocal value
        value = new

    return read, change


class Space:
    """An attribute of a class, which its methods read through the class of an instance."""

    rate = 0.0

    def of_class(self) -> float:
        return type(self).rate


SPACES, DEFAULTS = [Space(), Space()], defaultdict[str, float](lambda: 0.0)


def put_code(value: float) -> None:
    """What a notebook does that loads edited code again: the function stays, and its code is another."""
    namespace: dict[str, Any] = {}
    exec(f"def edited() -> float:\n    return {value}", namespace)
    edited.__code__ = namespace["edited"].__code__


def edited() -> float:
    return 0.0


def with_default(value: float) -> Callable[[], float]:
    def read(value: float = value) -> float:
        return value

    return read


def reading(read: Callable[[], Any]) -> Callable[..., Any]:
    def loss(p: P, x: Float[Tensor, "b n"]) -> Scalar:
        return (x @ p.w).mean() * 0 + read()

    return loss


def put(name: str) -> Callable[[float], None]:
    return lambda value: globals().update({name: value})


def put_tensor(value: float) -> None:
    globals()["teacher"] = torch.tensor(value)


def put_in_network(value: float) -> None:
    with torch.no_grad():
        NET.weight.fill_(value)
        NET.bias.zero_()  # type: ignore[union-attr]


class Schedule:
    def now(self) -> float:
        return 0.0


SCHEDULE = Schedule()


def put_late(value: float) -> None:
    """An attribute that is there for one value only, and a method that is another for each."""
    vars(SPACE).pop("late", None)
    if value == 2.0:
        SPACE.late = 0.0
    setattr(Schedule, "now", lambda self: value - (value == 2.0))  # noqa: B010


def late() -> float:
    return SCHEDULE.now() + hasattr(SPACE, "late")


loss_of_closure, change_closure = enclosed()
(first_of_two, _), (second_of_two, change_second) = enclosed_value(), enclosed_value()
first_default, second_default = with_default(0.0), with_default(0.0)
READ: dict[str, tuple[Callable[..., Any], Callable[[float], Any]]] = {
    "a tensor written in place": (reading(lambda: teacher), lambda v: teacher.fill_(v)),
    "a tensor replaced": (reading(lambda: teacher), put_tensor),
    "a tensor of an object": (
        reading(lambda: SPACE.teacher.mean()),
        lambda v: setattr(SPACE, "teacher", torch.full((3,), v)),
    ),
    "a tensor of a list": (reading(lambda: TEACHERS[0].mean()), lambda v: TEACHERS.__setitem__(0, torch.full((3,), v))),
    "tensors in a loop": (reading(lambda: sum(t.mean() for t in TEACHERS)), lambda v: TEACHERS[0].fill_(v)),
    "a tensor's data": (reading(lambda: TEACHERS[0].data.mean()), lambda v: TEACHERS[0].fill_(v)),
    "values of a tensor": (reading(lambda: TEACHERS[0].tolist()[1]), lambda v: TEACHERS[0].fill_(v)),
    "another network": (reading(lambda: NET(torch.ones(3)).sum() / 3), put_in_network),
    "a global": (reading(lambda: weight), put("weight")),
    "a key": (reading(lambda: CONFIG["beta"]), lambda v: CONFIG.update(beta=v)),
    "an attribute": (reading(lambda: OBJECT.beta), lambda v: setattr(OBJECT, "beta", v)),
    "an object replaced": (reading(lambda: SPACE.config.beta), lambda v: setattr(SPACE, "config", Config(v))),
    "an item": (reading(lambda: sum(LIST)), lambda v: LIST.__setitem__(1, v)),
    "an array": (reading(lambda: float(ARRAY[0])), lambda v: ARRAY.fill(v)),
    "a default": (reading(lambda: scale()), lambda v: setattr(scale, "__defaults__", (v,))),
    "a default that a signature shows": (
        reading(lambda: inspect.signature(scale).parameters["k"].default),
        lambda v: setattr(scale, "__defaults__", (v,)),
    ),
    "a closure": (loss_of_closure, change_closure),
    "the second of two closures of one code": (reading(lambda: first_of_two() + second_of_two()), change_second),
    "a default of the second of two functions of one code": (
        reading(lambda: first_default() + second_default()),
        lambda v: setattr(second_default, "__defaults__", (v,)),
    ),
    "an attribute of a class": (reading(lambda: Space().of_class()), lambda v: setattr(Space, "rate", v)),
    "an attribute of the class of what was just made": (
        reading(lambda: Space().rate),
        lambda v: setattr(Space, "rate", v),
    ),
    "an attribute of the class of the largest": (
        reading(lambda: max(SPACES, key=id).rate),
        lambda v: setattr(Space, "rate", v),
    ),
    "a key that was made when it was missing": (reading(lambda: DEFAULTS["beta"]), lambda v: DEFAULTS.update(beta=v)),
    "code of a function": (reading(lambda: edited()), put_code),
    "what comes and is replaced": (reading(late), put_late),
}


AUTO = "a tensor replaced", "a key", "a closure"  # by which the third backend is held too, as it is both others


FEW = (
    *(*AUTO, "another network", "an attribute", "an array", "a default that a signature shows"),
    *("an attribute of a class", "code of a function"),
)


@pytest.mark.parametrize("kind", [pytest.param(kind, marks=[] if kind in FEW else [pytest.mark.slow]) for kind in READ])
def test_both_backends_follow_what_a_loss_reads_from_outside(kind: str) -> None:
    loss, change = READ[kind]
    for backend in ("eager", "compiled", "auto") if kind in AUTO else ("eager", "compiled"):
        change(0.0)
        trainer = ScalarTrainer(loss, P(w=torch.ones(3)), backend=backend)  # type: ignore[arg-type]
        seen = []
        for value in (1.0, 2.0, 2.0, 1.0):
            change(value)
            seen.append(trainer.step(X, lr=0.1).item())
            assert trainer.forward(X).item() == value
            assert trainer.loss_and_backward(X)[0].item() == value

        assert seen == [1.0, 2.0, 2.0, 1.0]


@pytest.mark.parametrize("backend", ["eager", "compiled"])
def test_what_the_user_puts_on_a_parameter_is_followed(backend: Any) -> None:
    def loss(p: P, x: Float[Tensor, "b n"]) -> Scalar:
        return (x @ p.w).mean() * 0 + getattr(p.w, "scale", 0.0)

    params = P(w=torch.ones(3))
    trainer = ScalarTrainer(loss, params, backend=backend)
    seen = []
    for value in (0.0, 2.0, 3.0):
        if value:
            params.w.scale = value  # type: ignore[attr-defined]
        seen.append(trainer.step(X, lr=0.1).item())

    assert seen == [0.0, 2.0, 3.0]


def test_a_value_that_comes_back_finds_its_executor() -> None:
    trainer = ScalarTrainer(READ["a global"][0], P(w=torch.ones(3)), backend="compiled")
    for value in (1.0, 2.0, 1.0, 2.0):
        put("weight")(value)
        trainer.step(X, lr=0.1)

    assert len(trainer.executors) == 2
    assert "another value outside" in str(trainer.executors)


def test_tensors_that_are_updated_compile_nothing_again() -> None:
    trainer = ScalarTrainer(READ["a tensor replaced"][0], P(w=torch.ones(3)), backend="compiled")
    for value in range(4):
        put_tensor(float(value))
        trainer.step(X, lr=0.1)

    assert len(trainer.executors) == 1


def test_batches_of_all_sizes_share_one_graph_that_takes_what_lies_outside() -> None:
    program = ScalarTrainer(READ["a tensor replaced"][0], P(torch.ones(3)))._program
    cases = [program.admit([torch.ones(rows, 3)]) for rows in (2, 3, 4)]

    assert len({id(case.graph) for case in cases}) == 1
    assert all(case.outside for case in cases)


def test_a_value_that_the_loss_does_not_read_proves_nothing_again() -> None:
    trainer = ScalarTrainer(READ["a key"][0], P(w=torch.ones(3)), backend="compiled")
    trainer.step(X, lr=0.1)
    CONFIG["step"] += 1
    trainer.step(X, lr=0.1)

    assert len(trainer.executors) == 1


@pytest.mark.parametrize("backend", ["eager", "compiled"])
def test_a_tensor_of_another_shape_is_an_error_that_names_it(backend: Any) -> None:
    SPACE.teacher = torch.zeros(3)
    trainer = ScalarTrainer(READ["a tensor of an object"][0], P(w=torch.ones(3)), backend=backend)
    before = trainer.get_params()
    SPACE.teacher = torch.zeros(4)
    with pytest.raises(ShapeError) as raised:
        trainer.step(X, lr=0.1)

    assert str(raised.value) == (
        "`loss` was proved for other tensors from outside; make a new trainer for these.\n"
        "  SPACE.teacher: float32 (3,) on cpu when it was proved, float32 (4,) on cpu now"
    )
    assert torch.equal(trainer.params.w, before.w)
    SPACE.teacher = torch.ones(3)
    assert trainer.step(X, lr=0.1).item() == 1.0


def branching(p: P, x: Float[Tensor, "b n"]) -> Scalar:
    return (x @ p.w).mean() if not flag else (x @ p.w) @ p.w


@pytest.mark.parametrize("backend", ["eager", "compiled"])
def test_a_branch_that_a_flag_opens_is_proved_before_it_runs(backend: Any) -> None:
    put("flag")(False)  # type: ignore[arg-type]
    trainer = ScalarTrainer(branching, P(w=torch.ones(3)), backend=backend)
    trainer.step(X, lr=0.1)
    before = trainer.get_params()
    put("flag")(True)  # type: ignore[arg-type]
    for _ in range(2):
        with pytest.raises(ProofError):
            trainer.step(X, lr=0.1)
    assert torch.equal(trainer.params.w, before.w)
    put("flag")(False)  # type: ignore[arg-type]

    trainer.step(X, lr=0.1)


def test_a_value_that_changes_for_ever_is_an_error_that_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shaped.backends.outside.WORLDS", 4)
    CONFIG["beta"] = 0.0
    trainer = ScalarTrainer(READ["a key"][0], P(w=torch.ones(3)), backend="compiled")
    for value in range(3):
        CONFIG["beta"] = 0.5 + value
        trainer.step(X, lr=0.1)
    CONFIG["beta"] = -1.0
    with pytest.raises(ExecutorError, match=r"`CONFIG\['beta'\]` changed again"):
        trainer.step(X, lr=0.1)

    CONFIG["beta"] = 0.5  # one of those that are proved
    assert trainer.step(X, lr=0.1).item() == 0.5


def test_eager_steps_follow_a_value_that_changes_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shaped.backends.outside.WORLDS", 4)
    trainer = ScalarTrainer(READ["a key"][0], P(w=torch.ones(3)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for value in range(8):
            CONFIG["beta"] = 0.5 + value

            assert trainer.step(X, lr=0.1).item() == 0.5 + value


def test_what_a_loss_changes_itself_is_not_compiled() -> None:
    def counting(p: P, x: Float[Tensor, "b n"]) -> Scalar:
        OBJECT.step += 1
        return (x @ p.w).mean() * OBJECT.step

    trainer = ScalarTrainer(counting, P(w=torch.ones(3)), backend="compiled")
    with pytest.raises(ExecutorError, match=r"`counting` changes `OBJECT.step`, which it reads"):
        trainer.step(X, lr=0.1)


def test_of_a_loss_that_reads_nothing_its_code_alone_is_watched() -> None:
    def plain(p: P, x: Float[Tensor, "b n"]) -> Scalar:
        return F.relu(x @ p.w).square().mean()  # what a library's functions do does not change

    trainer = ScalarTrainer(plain, P(w=torch.ones(3)), backend="compiled")

    assert trainer._program.outside.now.watched == 1


class Hooked(nn.Module):
    """Modules with hooks run in a function that torch makes at each call, and each makes functions of its own."""

    def __init__(self) -> None:
        super().__init__()
        inner = nn.Sequential(nn.Linear(3, 3))
        self.outer = nn.Sequential(nn.Linear(3, 3), inner)
        for module in (self.outer, self.outer[0], inner, inner[0]):
            module.register_forward_hook(lambda module, args, output: self.keep(output))

    def keep(self, output: Tensor) -> None:
        held = COLLECTED.get()
        if held is not None:
            held.append(output)

    def forward(self, x: Float[Tensor, "b 3"]) -> Tensor:
        token = COLLECTED.set([])
        try:
            y = self.outer(x)
            held = COLLECTED.get() or []
        finally:
            COLLECTED.reset(token)
        return y + sum(part.mean() for part in held)


COLLECTED: ContextVar[list[Tensor] | None] = ContextVar("COLLECTED", default=None)


def of_hooked(net: Hooked, x: Float[Tensor, "b 3"]) -> Scalar:
    return net(x).square().mean()


@pytest.mark.parametrize("backend", ["eager", "compiled"])
def test_what_a_program_makes_at_each_call_proves_nothing_again(backend: Any) -> None:
    trainer = ScalarTrainer(of_hooked, Hooked(), backend=backend)
    for _ in range(3):
        trainer.step(X, lr=0.1)

    assert trainer._program.outside.now.number == 0


def of_sequences(p: P, x: Float[Tensor, "b s n"]) -> Scalar:
    return (x @ p.w).mean() * 0 + SPACE.teacher.mean() + CONFIG["beta"]


def test_what_each_size_reads_anew_is_kept_once_and_followed() -> None:
    CONFIG["beta"], SPACE.teacher = 0.0, torch.zeros(3)
    trainer = ScalarTrainer(of_sequences, P(w=torch.ones(3)))
    for length in range(2, 6):  # sizes of one row are traced apart
        trainer.forward(torch.ones(1, length, 3))
    world = trainer._program.outside.now
    kept = len(world._reads)
    for length in range(6, 10):
        trainer.forward(torch.ones(1, length, 3))
    compiled = trainer.with_backend("compiled")
    seen = []
    for value, beta, rows in ((1.0, 0.0, 1), (2.0, 0.0, 2), (3.0, 10.0, 1), (4.0, 10.0, 2), (5.0, 0.0, 1)):
        SPACE.teacher, CONFIG["beta"] = torch.full((3,), value), beta
        seen += [backend.forward(torch.ones(rows, 4, 3)).item() for backend in (trainer, compiled)]

    assert len(world._reads) == kept
    assert seen == [1.0, 1.0, 2.0, 2.0, 13.0, 13.0, 14.0, 14.0, 5.0, 5.0]


@pytest.mark.parametrize("backend", ["eager", "compiled"])
@pytest.mark.parametrize(
    ("owner", "name", "loss"),
    [
        (math, "floor", lambda p, x: (x @ p.w).sum() * math.floor(2.5)),
        (math, "sqrt", lambda p, x: (x @ p.w).sum() * math.sqrt(x.shape[1])),
        (F, "relu", lambda p, x: nn.ReLU()(x @ p.w).sum()),
    ],
)
def test_a_function_of_a_library_that_another_replaces_is_followed(
    owner: Any, name: str, loss: Any, backend: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def program(p: P, x: Float[Tensor, "b n"]) -> Scalar:
        value: Tensor = loss(p, x)
        return value

    trainer = ScalarTrainer(program, P(w=torch.ones(3)), backend=backend)
    before = trainer.loss_and_backward(X)[0]
    with monkeypatch.context() as patched:
        patched.setattr(owner, name, lambda x, *_, **__: x * 0 + 7)
        torch.testing.assert_close(trainer.loss_and_backward(X)[0], program(trainer.params, X).detach())  # type: ignore[arg-type]
    assert trainer.loss_and_backward(X)[0] == before
