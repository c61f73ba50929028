"""A remembered result is the one that torch's shape functions give, whatever the operation."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import SymInt, Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import _pytree as pytree

from shaped.proof.isolation import tracing
from shaped.proof.symbolic import Plan, World

NAMES = ("b", "h", "s", "d")
HINTS = {"b": 240, "h": 336, "s": 528, "d": 624}

# Each on x [b, h, s, d], y [b, h, d, s] (a transposed view), n int64 [b, s] and the symbol s.
OPERATIONS: dict[str, Callable[[Tensor, Tensor, Tensor, Any], Any]] = {
    "transpose": lambda x, y, n, s: x.transpose(1, 2),
    "permute": lambda x, y, n, s: x.permute(0, 3, 1, 2),
    "view": lambda x, y, n, s: x.view(x.shape[0], -1),
    "view of a dtype": lambda x, y, n, s: x.view(torch.int32),
    "reshape of a view": lambda x, y, n, s: y.reshape(y.shape[0], -1),
    "flatten": lambda x, y, n, s: x.flatten(1, 2),
    "unflatten": lambda x, y, n, s: x.flatten(1, 2).unflatten(1, (x.shape[1], x.shape[2])),
    "unsqueeze": lambda x, y, n, s: x.unsqueeze(2),
    "squeeze": lambda x, y, n, s: x.unsqueeze(2).squeeze(2),
    "expand": lambda x, y, n, s: x[:, :1].expand(x.shape),
    "broadcast_to": lambda x, y, n, s: torch.broadcast_to(x[0], x.shape),
    "select": lambda x, y, n, s: x[:, -1],
    "slice": lambda x, y, n, s: x[:, :, 1:],
    "slice to a size": lambda x, y, n, s: y[..., : s - 1],
    "slice with a step": lambda x, y, n, s: x[:, ::2],
    "narrow": lambda x, y, n, s: x.narrow(2, 1, s - 1),
    "diagonal": lambda x, y, n, s: x.diagonal(dim1=1, dim2=2),
    "unfold": lambda x, y, n, s: x.unfold(2, 3, 1),
    "movedim": lambda x, y, n, s: x.movedim(-1, 1),
    "alias": lambda x, y, n, s: torch.ops.aten.alias(x),
    "detach": lambda x, y, n, s: x.detach(),
    "clone": lambda x, y, n, s: y.clone(),
    "contiguous": lambda x, y, n, s: y.contiguous(),
    "channels last": lambda x, y, n, s: x.contiguous(memory_format=torch.channels_last),
    "to another dtype": lambda x, y, n, s: x.to(torch.float64),
    "to the same dtype": lambda x, y, n, s: y.to(torch.float32),
    "add": lambda x, y, n, s: x + y.mT,
    "add a number": lambda x, y, n, s: x + 1,
    "add a float": lambda x, y, n, s: n + 1.0,
    "add a truth": lambda x, y, n, s: n + True,
    "divide integers": lambda x, y, n, s: n / 2,
    "multiply by a size": lambda x, y, n, s: x * s,
    "compare": lambda x, y, n, s: x > 0,
    "where": lambda x, y, n, s: torch.where(x > 0, x, 0.0),
    "masked_fill": lambda x, y, n, s: x.masked_fill(x > 0, 0.0),
    "matmul": lambda x, y, n, s: x @ y,
    "matmul of a matrix": lambda x, y, n, s: x @ y[0, 0],
    "einsum": lambda x, y, n, s: torch.einsum("bhsd,bhdt->bhst", x, y),
    "sum": lambda x, y, n, s: x.sum(1),
    "sum of integers": lambda x, y, n, s: n.sum(1),
    "mean with keepdim": lambda x, y, n, s: y.mean((1, 2), keepdim=True),
    "softmax": lambda x, y, n, s: y.softmax(-1),
    "cumsum": lambda x, y, n, s: x.cumsum(2),
    "argmax": lambda x, y, n, s: x.argmax(1),
    "max over an axis": lambda x, y, n, s: x.max(1),
    "topk": lambda x, y, n, s: x.topk(3, dim=1),
    "sort": lambda x, y, n, s: x.sort(2),
    "var_mean": lambda x, y, n, s: torch.var_mean(x, 2),
    "chunk": lambda x, y, n, s: torch.cat([x, x], 3).chunk(2, 3),
    "split": lambda x, y, n, s: torch.cat([x, x], 2).split(s, 2),
    "unbind": lambda x, y, n, s: torch.stack([x, x], 2).unbind(2),
    "cat": lambda x, y, n, s: torch.cat([x, y.mT], dim=2),
    "stack": lambda x, y, n, s: torch.stack([x, x]),
    "gather": lambda x, y, n, s: x[:, 0].gather(1, n.unsqueeze(-1)),
    "index by a tensor": lambda x, y, n, s: x[0, 0][n],
    "embedding": lambda x, y, n, s: F.embedding(n, x[0, 0]),
    "layer_norm": lambda x, y, n, s: F.layer_norm(x, (x.shape[-1],)),
    "native_layer_norm": lambda x, y, n, s: torch.native_layer_norm(x, [x.shape[-1]], None, None, 1e-5),
    "pad": lambda x, y, n, s: F.pad(x, (1, 2)),
    "conv1d": lambda x, y, n, s: F.conv1d(x[:, 0], torch.empty(7, s, 3), padding=1),
    "avg_pool2d": lambda x, y, n, s: F.avg_pool2d(x, 2),
    "tril": lambda x, y, n, s: x.tril(),
    "repeat": lambda x, y, n, s: x.repeat(1, 2, 1, 1),
    "flip": lambda x, y, n, s: x.flip(1),
    "roll": lambda x, y, n, s: x.roll(1, 2),
    "complex": lambda x, y, n, s: torch.complex(x, x).abs(),
    "zeros_like": lambda x, y, n, s: torch.zeros_like(y),
    "empty_like": lambda x, y, n, s: torch.empty_like(y, dtype=torch.int32),
    "new_zeros": lambda x, y, n, s: x.new_zeros(s, 3),
    "ones": lambda x, y, n, s: torch.ones(s, s, dtype=torch.bool),
    "arange": lambda x, y, n, s: torch.arange(s),
    "full": lambda x, y, n, s: torch.full((s, 2), 1.5),
    "rand_like": lambda x, y, n, s: torch.rand_like(x),
    "dropout": lambda x, y, n, s: F.dropout(x, 0.5),
    "eye": lambda x, y, n, s: torch.eye(s),
}


def world() -> World:
    return World(NAMES, Plan(HINTS))


def operands(mode: FakeTensorMode, sizes: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor, Any]:
    b, h, s, d = (sizes[name] for name in NAMES)
    with mode:
        return (
            torch.empty(b, h, s, d),
            torch.empty(b, h, s, d).transpose(2, 3),
            torch.empty(b, s, dtype=torch.int64),
            s,
        )


def fresh() -> tuple[FakeTensorMode, dict[str, Any]]:
    """torch's own mode without any memory, over symbols that are created in the same order, so bear the same names."""
    plain = world()
    mode = FakeTensorMode(shape_env=plain.env, allow_non_fake_inputs=True)
    mode.cache_enabled = False
    return mode, plain.values


def metadata(value: Any) -> Any:
    """Everything that a later operation can see of a result."""
    if isinstance(value, Tensor):
        sizes = [*value.shape, *value.stride(), value.storage_offset()]
        return (*map(str, sizes), value.dtype, value.device, value.requires_grad, value.is_contiguous())
    return str(value)


def described(result: Any) -> list[Any]:
    leaves, tree = pytree.tree_flatten(result)
    return [str(type(result)), str(tree), *map(metadata, leaves)]


@pytest.mark.parametrize("name", OPERATIONS)
def test_a_remembered_result_has_the_metadata_that_torch_gives(name: str):
    operation = OPERATIONS[name]
    own = world()
    mode, sizes = fresh()
    with tracing():
        mine, theirs = operands(own.mode, own.values), operands(mode, sizes)
        with own.mode:
            first, second = operation(*mine), operation(*mine)
        with mode:
            expected = operation(*theirs)

    assert described(first) == described(second) == described(expected)


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The operations whose shape functions torch has run."""
    seen: list[Any] = []
    original = FakeTensorMode.dispatch

    def counted(self: Any, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        seen.append(func)
        return original(self, func, types, args, kwargs)

    monkeypatch.setattr(FakeTensorMode, "dispatch", counted)
    return seen


def test_the_second_block_costs_no_shape_function(runs: list[Any]):
    def block(x: Tensor, y: Tensor) -> Tensor:
        return F.gelu((x @ y).softmax(-1) @ x).transpose(1, 2).flatten(2)

    own = world()
    with tracing():
        x, y, _, _ = operands(own.mode, own.values)
        other, transposed, _, _ = operands(own.mode, own.values)
        with own.mode:
            first = block(x, y)
            count = len(runs)
            second = block(other, transposed)

    assert count > 4
    assert {str(func) for func in runs[count:]} <= {"prim.device.default"}  # asks, and computes nothing
    assert described(first) == described(second)


def test_another_dtype_stride_or_kind_of_number_is_another_operation():
    own = world()
    with tracing():
        x, y, n, _ = operands(own.mode, own.values)
        with own.mode:
            assert (x + 1).dtype is (x + 1).dtype is torch.float32
            assert (n + 1).dtype is torch.int64
            assert (n + 1.0).dtype is torch.float32
            assert (n + True).dtype is torch.int64
            assert (x.double() + 1).dtype is torch.float64
            assert y.relu().stride() == y.stride() != x.relu().stride()


IN_PLACE: dict[str, Callable[[Tensor], Any]] = {
    "t_": lambda a: a.t_(),
    "unsqueeze_": lambda a: a.unsqueeze_(0),
    "transpose_": lambda a: a.transpose_(0, 1),
    "resize_": lambda a: a.resize_(5, 6),
    "set_": lambda a: a.set_(torch.empty(9).untyped_storage()),
    "out=": lambda a: torch.add(torch.empty(3, 4), 1, out=a),
    "as_strided_": lambda a: a.as_strided_((2, 2), (1, 1)),
    "squeeze_": lambda a: a.unsqueeze_(0).squeeze_(0),
}


@pytest.mark.filterwarnings("ignore:An output with one or more elements was resized")
@pytest.mark.parametrize("name", IN_PLACE)
def test_after_an_operation_in_place_the_new_metadata_counts(name: str):
    change = IN_PLACE[name]
    own = world()
    with tracing(), own.mode:
        a = torch.empty(3, 4)
        a + 1  # known at its first shape
        change(a)
        found = metadata(a + 1), metadata(a.sum(0))
    real = torch.empty(3, 4)
    change(real)

    assert found == (metadata(real + 1), metadata(real.sum(0)))


DEPENDS_ON_DATA: dict[str, Callable[[Tensor], Any]] = {
    "nonzero": lambda x: x.nonzero().shape[0],
    "masked_select": lambda x: x.masked_select(x > 0).shape[0],
    "indexing by a mask": lambda x: x[x > 0].shape[0],
    "unique": lambda x: torch.unique(x).shape[0],
    "item": lambda x: x.sum().item(),
}


@pytest.mark.parametrize("name", DEPENDS_ON_DATA)
def test_what_depends_on_data_is_another_unknown_for_each_tensor(name: str):
    own = world()
    with tracing(), own.mode:
        first, second = (DEPENDS_ON_DATA[name](torch.empty(6, 4)) for _ in range(2))

    assert str(first) != str(second)


def test_a_remembered_result_is_a_view_of_its_own_base_and_asks_for_its_own_gradient():
    own = world()
    with tracing():
        x, _, _, _ = operands(own.mode, own.values)
        with own.mode:
            other = torch.empty_like(x).requires_grad_()
            views = [x[0], other[0], x[0]]
            before = other._version
            views[2].add_(1)

            assert [view._base is base for view, base in zip(views, (x, other, x), strict=True)] == [True] * 3
            assert [view.requires_grad for view in views] == [False, True, False]
            assert other._version == before
            assert x._version == 1
            assert (x * 2).requires_grad is False
            assert (other * 2).requires_grad is True
            with torch.no_grad():
                assert (other * 2).requires_grad is False


def test_every_size_of_a_tensor_that_was_met_is_noted():
    own = world()
    with tracing(), own.mode:
        x, _, _, s = operands(own.mode, own.values)
        x[:, :, 1:] + 1

    met = {own.show(size) for size in own.mode.sizes}

    assert isinstance(s, SymInt)
    assert {"b", "h", "s", "d", "s - 1"} <= met
