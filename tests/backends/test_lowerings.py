"""Lowerings that are known to be wrong, and operations on edge values on both backends.

Each operation is a function of one tensor, traced with its gradient as a proof traces it. Many of them are lowered as
one graph, and what they give is compared with torch's own kernels: NaN, infinity and integers exactly.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from shaped import ExecutorError, ParamList, ScalarTrainer
from shaped.backends.inductor import lower
from shaped.backends.lowerings import KNOWN
from shaped.backends.values import Checked
from shaped.proof.rewrites import Rewrites
from tests.backends.operations import INPUTS, OPERATIONS

PAGE = Path(__file__).parents[2] / "docs" / "compiled-step.md"
Function = Callable[[Tensor], Tensor]


def table() -> str:
    return "\n".join(f"| {' | '.join((f.operation, f.versions, f.wrong, f.reported, f.mended))} |" for f in KNOWN)


def test_the_page_has_the_table_of_lowerings_that_are_known_to_be_wrong():
    head = "<!-- table: KNOWN -->\n| operation | torch | what is wrong | reported | mended |\n|---|---|---|---|---|\n"

    assert head + table() + "\n" in PAGE.read_text()


def with_gradient(function: Function, x: Tensor) -> tuple[Tensor, ...]:
    """What a function gives, and the gradient of a weighted sum of it where there is one."""
    x = x.detach().requires_grad_(x.is_floating_point())
    with torch.enable_grad():
        y = function(x)
        if not y.requires_grad:
            return (y,)
        weights = torch.linspace(0.5, 1.5, y.numel(), dtype=y.dtype).reshape(y.shape)
        (gradient,) = torch.autograd.grad((y * weights).sum(), x)
    return y.detach(), gradient


def traced(function: Function, x: Tensor) -> torch.fx.GraphModule:
    with Rewrites():
        return make_fx(partial(with_gradient, function), tracing_mode="real")(x)


def compiled(functions: Sequence[tuple[Function, Tensor]]) -> list[tuple[Tensor, ...]]:
    """The same of several functions, from one compiled graph."""
    graphs = [traced(function, x) for function, x in functions]

    def all_of_them(*flat: Tensor) -> tuple[Tensor, ...]:
        return tuple(y.clone() for graph, x in zip(graphs, flat, strict=True) for y in Checked(graph).run(x))

    values = [x for _, x in functions]
    found = list(lower(all_of_them, values, []).run([x.clone() for x in values]))
    counts = [len(next(n for n in graph.graph.nodes if n.op == "output").args[0]) for graph in graphs]
    return [tuple(found.pop(0) for _ in range(count)) for count in counts]


def same(mine: Tensor, other: Tensor) -> bool:
    """Up to rounding, with NaN, infinity and integers as they are."""
    if mine.dtype != other.dtype or mine.shape != other.shape:
        return False
    if not mine.is_floating_point():
        return torch.equal(mine, other)
    finite = mine[mine.isfinite()].abs()
    scale = float(finite.amax()) if finite.numel() else 1.0
    return torch.allclose(mine, other, rtol=2e-5, atol=min(1e-6 * max(scale, 1.0), 1e30), equal_nan=True)


LEFT = {  # in the table as left
    *(
        "gelu of edges",
        "prod of rows",
        "hardtanh of edges",
        "relu6 of edges",
        "x ** 0.5 of edges",
        "x ** 0.5 of numbers",
    ),
    *(
        "remainder with its reverse of edges",
        "addcmul of edges",
        "addcdiv of edges",
        "group_norm of image",
        "instance_norm of image",
    ),
    *("smooth_l1 of nan rows", "soft_margin of finite rows", "mse_loss of nothing of no rows"),
    *("quantile of finite rows", "quantile of nan rows", "nanquantile of nan rows"),
}
CASES = [
    (f"{name} of {kind}", function, INPUTS[kind])
    for name, (function, kinds) in OPERATIONS.items()
    for kind in kinds
    if f"{name} of {kind}" not in LEFT
]
GROUP = 24


def test_at_least_165_operations_are_tried_on_edge_values():
    assert len(OPERATIONS) >= 165


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*degrees of freedom")
@pytest.mark.parametrize("start", range(0, len(CASES), GROUP))
def test_operations_on_edge_values_are_the_same_compiled(start: int):
    group = CASES[start : start + GROUP]
    found = compiled([(function, x) for _, function, x in group])
    wrong = []
    for (name, function, x), others in zip(group, found, strict=True):
        mine = with_gradient(function, x)
        if len(mine) != len(others) or not all(map(same, mine, others)):
            wrong.append(f"{name}: eager {mine}, compiled {others}")

    assert not wrong, "\n".join(wrong)


def _bent(x: Tensor) -> Tensor:
    return F.gelu(x * 1.3) + x


# One of each entry of the table that can be had without more than one thread.
FAULTS: dict[str, tuple[Function, Tensor]] = {
    "avg_pool1d": (lambda x: F.avg_pool1d(x, 3, 2, 1, ceil_mode=True), torch.rand(2, 3, 6)),
    "avg_pool2d": (lambda x: F.avg_pool2d(x, 3, 2, 1, ceil_mode=True), torch.rand(2, 3, 6, 6)),
    "avg_pool3d": (lambda x: F.avg_pool3d(x, 3, 2, 1, ceil_mode=True), torch.rand(2, 3, 6, 6, 6)),
    "lp_pool2d": (lambda x: F.lp_pool2d(x + 1, 2.0, 3, 2, ceil_mode=True), torch.rand(2, 3, 6, 6)),
    "index_add into an expanded tensor": (
        lambda x: torch.zeros(1, 4).expand(3, -1).index_add(0, torch.tensor([0, 1, 1]), x) * x.flip(0),
        torch.rand(3, 4),
    ),
    "index_put into an expanded tensor": (
        lambda x: x[:1].expand(3, -1).index_put((torch.tensor([1, 1]),), x[1:], accumulate=True) * x.flip(0),
        torch.rand(3, 4),
    ),
    "minima and maxima of bytes": (
        lambda x: torch.cat([x.to(torch.uint8).view(4, 18).amin(1), x.to(torch.uint8).view(4, 18).argmin(1)]),
        torch.arange(72.0) + 1,
    ),
    "the largest of halves": (
        lambda x: (_bent(x) == _bent(x).amax(1, keepdim=True)).to(torch.bfloat16),
        torch.linspace(-2, 3, 64, dtype=torch.bfloat16).view(8, 8),
    ),
    "halves that reach their maximum": (
        lambda x: (_bent(x) >= _bent(x).amax(1, keepdim=True)).to(torch.bfloat16),
        torch.linspace(-2, 3, 64, dtype=torch.bfloat16).view(8, 8),
    ),
    "maxima of small integers": (lambda x: x.to(torch.int8).view(4, 18).max(1).values, -torch.arange(72.0) - 1),
    "softmax over a tensor that is written": (
        lambda x: (
            x + torch.full((8, 8), -9.0).index_put((torch.arange(8)[None], torch.arange(8)[:, None]), x[0, 0])
        ).softmax(-1),
        torch.rand(8, 8),
    ),
    "remainder": (lambda x: (x % 3.0) + (x % -7.0), torch.tensor([3e38, 1e9, -1e10, 0.5, -0.0, math.inf])),
    "remainder of tensors": (lambda x: x % torch.tensor([3.0, -7.0, 0.0]), torch.tensor([3e38, 1e9, 1.0])),
    "floor_divide": (lambda x: x.detach() // -2.0, torch.tensor([1e-45, math.inf, -7.0, 0.0, 3e38])),
    "softshrink of NaN": (F.softshrink, torch.tensor([math.nan, 1.0, -0.25, -math.inf])),
    "logit": (torch.logit, torch.tensor([0.0, -0.0, 1.0, 0.5, 1.5])),
    "multilabel_margin_loss": (
        lambda x: F.multilabel_margin_loss(x, torch.tensor([[3, 0, -1, -1], [2, -1, -1, -1], [1, 2, 0, -1]])),
        torch.randn(3, 4),
    ),
    "multilabel_margin_loss of NaN": (
        lambda x: F.multilabel_margin_loss(x, torch.tensor([[3, 0, -1, -1]])),
        torch.tensor([[0.5, math.nan, 1.0, 1.0]]),
    ),
    "multi_margin_loss of NaN": (
        lambda x: F.multi_margin_loss(x, torch.tensor([1, 0])),
        torch.tensor([[0.5, math.nan, 1.0], [2.0, 1.0, 1.0]]),
    ),
}


@pytest.mark.slow
def test_every_operation_of_the_table_is_the_same_compiled():
    torch.manual_seed(0)
    found = compiled(list(FAULTS.values()))
    wrong = [
        name
        for (name, (function, x)), others in zip(FAULTS.items(), found, strict=True)
        if not all(map(same, with_gradient(function, x), others))
    ]

    assert not wrong


@pytest.mark.slow
def test_what_reads_a_sum_runs_after_the_addition_though_it_is_fused_with_what_came_before():
    def function(x: Tensor) -> tuple[Tensor, ...]:
        before = (x * 2).contiguous(memory_format=torch.channels_last)
        added = torch.zeros_like(x).index_put((torch.tensor([1, 1]),), x, accumulate=True)
        return before, added * 3 + x

    x = torch.randn(2, 4, 4, 4)
    found = lower(function, [x], []).run([x.clone()])

    assert all(map(same, function(x), found))


class Scale(ParamList):
    s: Float[Tensor, "4"]


Images = Float[Tensor, "n 4 4 4"]


def skipping(p: Scale, x: Images) -> tuple[Float[Tensor, ""], Images, Images]:
    before = (x * 2).contiguous(memory_format=torch.channels_last)
    added = torch.zeros_like(x).index_put((torch.tensor([1, 1]),), x, accumulate=True)
    return (x.mean((2, 3)) * p.s).square().mean(), before, added * 3 + x


@pytest.mark.slow
@pytest.mark.skipif(torch.__version__ >= "2.14", reason="torch has mended it")
def test_the_first_batch_tells_of_a_lowering_that_is_not_mended_and_nothing_has_changed(monkeypatch):
    """The fault of a U-Net's gradients, by the check alone; what is compiled here is found by no other process."""
    monkeypatch.setattr("shaped.backends.lowerings._order_kept", lambda stack: None)
    monkeypatch.setattr("shaped.backends.inductor.MENDED", "without the order")
    x, said = (
        torch.randn(2, 4, 4, 4),
        r"The first operation that parts is add of \[2, 4, 4, 4\], \[2, 4, 4, 4\]\. Nothing",
    )
    trainer = ScalarTrainer(skipping, Scale.init(seed=0), backend="compiled", sizes="static")
    before = str(trainer.state_dict())
    with pytest.raises(ExecutorError, match=said):
        trainer.adamw_step(x, lr=0.1)
    assert str(trainer.state_dict()) == before
    auto = ScalarTrainer(skipping, Scale.init(seed=0), backend="auto", sizes="static")
    with pytest.warns(RuntimeWarning, match=f"goes on with the eager backend: .* {said}"):
        auto.adamw_step(x, lr=0.1)
    trainer.with_backend("eager").adamw_step(x, lr=0.1)

    assert auto.backend == "eager"
    assert torch.equal(auto.params.s, trainer.params.s)
