"""What is checked in four processes: a plan by name, and flat parts of what a rank has by it; run by processes.py."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from shaped import NonFiniteError, ParamList, RankError, ScalarTrainer, ShapeError
from shaped.optim import AdamW
from shaped.ranks import join
from tests.ranks.by_name import module_follows
from tests.ranks.processes import EXACT, LARGE, MLP, alone, batch, mine, mlp, raises, rank, same

BOTH: dict[str, Callable[[], None]] = {}


def wide(loss: Callable[..., Any] = mlp, **options: Any) -> ScalarTrainer:
    params = MLP.init(pixels=6, hidden=8, classes=5, seed=0, dtype=torch.float32).to(dtype=torch.float64)
    return ScalarTrainer(loss, params, optimizer=AdamW(params, lr=0.01), max_norm=0.3, accumulate=2, **options)


def both(function: Callable[[], None]) -> Callable[[], None]:
    BOTH[function.__name__] = function
    return function


@both
def a_module_steps_as_one_process_in_parts_by_name_and_over_the_batch() -> None:
    mesh = join(dp=2, tp=2)
    row = mesh.get_local_rank("dp")
    for backend, batches in (("eager", range(4)), ("compiled", LARGE)):
        plan: dict[str, Any] = {"mesh": mesh, "shard": {"batch": "dp", "hidden": "tp"}, "zero": 3}
        given = lambda k: mine(k, *batch(k), first=row == 0)  # noqa: E731
        made = module_follows(given, batches, backend=backend, sizes="dynamic", **plan)
        assert [tuple(t.shape) for t in made._program.tensors] == [(12,), (2,), (10,), (3,), (3,), (3,)]


@both
def parts_by_name_and_over_the_batch_step_as_one_process_and_share_errors() -> None:
    """Unequal batches, of which one has one row on some ranks; an axis of 5 classes that two ranks do not divide."""
    mesh = join(dp=2, tp=2)
    together = wide(mesh=mesh, shard={"batch": "dp", "hidden": "tp"}, zero=3)
    one, row = alone(make=wide), mesh.get_local_rank("dp")
    assert [tuple(t.shape) for t in together._program.tensors] == [(12,), (2,), (10,), (3,)]
    assert "1/2 over dp of: w1 [pixels, hidden/tp], b1 [hidden/tp], w2 [hidden/tp, classes]" in str(together.proof)
    assert "1 gather of 216 bytes; 1 reduce-scatter of 432 bytes over dp" in str(together.proof)

    def given(k: int) -> list[Tensor]:
        return mine(k, *batch(k), first=row == 0)

    x, y = given(0)
    raises(lambda: together.train_step(x[:, :5] if rank() == 3 else x, y), ShapeError)
    raises(lambda: together.train_step(x + rank(), y), RankError, "one batch along tp")
    raises(lambda: together.train_step(x * float("nan") if row == 1 else x, y), NonFiniteError)
    for k in range(6):
        together.train_step(*given(k))
        one.train_step(*batch(k))
    same(together, one)
    state = together.state_dict()
    torch.testing.assert_close(together.forward(*given(0)), one.forward(*given(0)), rtol=EXACT, atol=EXACT)
    together.load_state_dict(one.state_dict())
    one.load_state_dict(state)
    for k in range(6, 8):
        together.train_step(*given(k))
        one.train_step(*batch(k))
    same(together, one)


class Tied(ParamList):
    tokens: Float[Tensor, "vocab dim"]
    scale: Float[Tensor, " dim"]
    up: Float[Tensor, "dim hidden"]
    bias: Float[Tensor, " hidden"]
    down: Float[Tensor, "hidden dim"]


def next_token(p: Tied, x: Int[Tensor, "batch seq"], y: Int[Tensor, "batch seq"]) -> Float[Tensor, ""]:
    h = p.tokens[x]
    h = h + F.gelu(F.rms_norm(h, (h.shape[-1],), p.scale) @ p.up + p.bias) @ p.down
    return F.cross_entropy((h @ p.tokens.T).flatten(0, 1), y.flatten())


def tied(loss: Callable[..., Any] = next_token, **options: Any) -> ScalarTrainer:
    params = Tied.init(vocab=12, dim=6, hidden=8, seed=0, dtype=torch.float32).to(dtype=torch.float64)
    return ScalarTrainer(loss, params, optimizer=AdamW(params, lr=0.01), max_norm=0.3, **options)


@both
def a_tied_table_by_name_over_tp_with_the_batch_over_dp_steps_as_one_process() -> None:
    mesh, one = join(dp=2, tp=2), alone(next_token, make=tied)
    row, first = mesh.get_local_rank("dp"), one.state_dict()
    for zero in (0, 3):
        one.load_state_dict(first)
        together = tied(mesh=mesh, shard={"batch": "dp", "hidden": "tp", "vocab": "tp"}, zero=zero)
        said = "tokens [vocab/tp, dim], up [dim, hidden/tp], bias [hidden/tp], down [hidden/tp, dim]"
        assert said in str(together.proof)
        for k in range(4):
            tokens = torch.randint(0, 12, (5, 4), generator=torch.Generator().manual_seed(k))
            rows = tokens[:3] if row == 0 else tokens[3:]  # 3 and 2 of 5
            value, want = together.train_step(rows[:, :3], rows[:, 1:]), one.train_step(tokens[:, :3], tokens[:, 1:])
            torch.testing.assert_close(value, want, rtol=EXACT, atol=EXACT)
        same(together, one)
        assert together.grad_norm is not None
        torch.testing.assert_close(together.grad_norm, one.grad_norm, rtol=EXACT, atol=EXACT)
