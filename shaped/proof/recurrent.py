"""`nn.RNN`, `nn.LSTM` and `nn.GRU` over a time that is a name: each call is one operation of the graph.

torch takes a recurrent layer apart into as many steps as its time has, so that a graph of it holds for one time only.
Here it stays whole, and so it runs in torch's own kernels, whatever the time:

    recurrent             the layer
    recurrent_backward    its gradients: the layer once more, differentiated by torch

So does a layer over what is packed (packed.py), which has the sizes of its batches beside its rows.

Several layers with dropout between them are taken one by one: torch's own decomposition leaves that dropout out.
"""

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch import SymInt, Tensor

from shaped.proof.packed import batch_of

GATES = {"lstm": 4, "gru": 3, "rnn_tanh": 1, "rnn_relu": 1}  # rows of a layer's weights, in units of its state
_OPTIONS = "bool biased, int layers, bool both_ways, bool batch_first"
_OPERANDS = f"str kind, Tensor x, Tensor[] state, Tensor[] weights, {_OPTIONS}, Tensor? sizes=None"


def layer_of(kind: str) -> Callable[..., Any]:
    """`torch.lstm` and its like."""
    original = getattr(torch, kind)

    def layer(*args: Any, **kwargs: Any) -> Any:
        if not kwargs and _drops(args):
            return _one_by_one(kind, layer, args)
        packed = not kwargs and len(args) == 9 and _is_packed(args) and batch_of(args[1]) is not None
        if not (_is_whole(args[0], args[2], args[3], args[4], args[5], args[8]) if packed else _is_plain(args, kwargs)):
            return original(*args, **kwargs)
        if packed:
            x, sizes, state, weights, biased, layers, _, _, both_ways = args
            options: tuple[Any, ...] = (biased, layers, both_ways, False, sizes)
            batch = batch_of(sizes)
        else:
            x, state, weights, biased, layers, _, _, both_ways, batch_first = args
            options = (biased, layers, both_ways, batch_first)
            batch, time = (x.shape[i] for i in ((0, 1) if batch_first else (1, 0)))
            if not time >= 1:
                raise RuntimeError("Expected sequence length to be larger than 0 in RNN")
        state = [state] if isinstance(state, Tensor) else list(state)
        _hold(kind, x, batch, state, weights, options)
        return _Layer.apply(kind, options, len(state), x, *state, *weights)  # type: ignore[no-untyped-call]

    return layer


def _drops(args: Sequence[Any]) -> bool:
    """Whether it is several layers that train with dropout; what is packed has the sizes of its batches after it."""
    if len(args) != 9:
        return False
    layers, dropout, train = args[5:8] if _is_packed(args) else args[4:7]
    return bool(layers > 1 and dropout and train)


def _is_packed(args: Sequence[Any]) -> bool:
    return isinstance(args[3], list | tuple)


def _one_by_one(kind: str, layer: Callable[..., Any], args: Sequence[Any]) -> tuple[Tensor, ...]:
    """The outputs and the last states of several layers, with dropout on what each but the last puts out."""
    at = 2 if _is_packed(args) else 1
    (x, *sizes), state, weights = args[:at], args[at], args[at + 1]
    biased, layers, dropout, train, both_ways, *first = args[at + 2 :]
    states = [state] if isinstance(state, Tensor) else list(state)
    each, directions, last = len(weights) // layers, 2 if both_ways else 1, []
    for i in range(layers):
        x = torch.dropout(x, dropout, True) if i else x
        held = tuple(s[i * directions : (i + 1) * directions] for s in states)
        own = weights[i * each : (i + 1) * each]
        given = held if kind == "lstm" else held[0]
        x, *ends = layer(x, *sizes, given, own, biased, 1, 0.0, train, both_ways, *first)
        last.append(ends)
    return (x, *(torch.cat(ends) for ends in zip(*last, strict=True)))


def _is_plain(args: Sequence[Any], kwargs: Any) -> bool:
    """Whether it is a batch of sequences of a free time, or of a free width: nothing packed, no projection."""
    if kwargs or len(args) != 9 or not isinstance(args[0], Tensor) or args[0].dim() != 3:
        return False
    x, state, weights, biased, layers, _, _, both_ways, batch_first = args
    if not _is_whole(x, state, weights, biased, layers, both_ways):
        return False
    return isinstance(x.shape[1 if batch_first else 0], SymInt) or isinstance(weights[0].shape[0], SymInt)


def _is_whole(x: Tensor, state: Any, weights: Any, biased: bool, layers: int, both_ways: bool) -> bool:
    """Whether it may be one operation: of one dtype, without projections, and neither mapped nor cast."""
    states = [state] if isinstance(state, Tensor) else list(state)
    per_layer = (4 if biased else 2) * (2 if both_ways else 1)
    if not isinstance(weights, list | tuple) or len(weights) != per_layer * layers:
        return False
    if not all(isinstance(t, Tensor) and t.dtype is x.dtype for t in (*states, *weights)):
        return False
    mapped = torch._C._functorch.is_batchedtensor(x) or torch._C._functorch.is_gradtrackingtensor(x)
    return not (mapped or torch.is_autocast_enabled(x.device.type))


def _hold(kind: str, x: Tensor, batch: Any, state: Sequence[Tensor], weights: Sequence[Tensor],
          options: Sequence[Any]) -> None:  # fmt: skip
    """What torch's kernels need of the sizes."""
    biased, layers, both_ways = options[:3]
    directions, hidden = 2 if both_ways else 1, state[0].shape[-1]
    rows = GATES[kind] * hidden
    for held in state:
        _same("the state", held, [layers * directions, batch, hidden])
    count = 4 if biased else 2
    for i in range(layers * directions):
        width = x.shape[-1] if i < directions else directions * hidden
        into, within, *biases = weights[i * count : (i + 1) * count]
        _same("a layer's weight of the input", into, [rows, width])
        _same("a layer's weight of the state", within, [rows, hidden])
        for bias in biases:
            _same("a layer's bias", bias, [rows])


def _same(what: str, tensor: Tensor, sizes: Sequence[Any]) -> None:
    if tensor.dim() != len(sizes) or not all(a == b for a, b in zip(tensor.shape, sizes, strict=True)):
        raise RuntimeError(f"{what} has the shape {list(tensor.shape)}, and {list(sizes)} is needed")


class _Layer(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, kind: str, options: tuple[Any, ...], count: int, x: Tensor, *rest: Tensor) -> Any:
        ctx.save_for_backward(x, *rest)
        ctx.given = kind, options, count
        forward, _ = operations()
        return tuple(forward(kind, x, list(rest[:count]), list(rest[count:]), *options))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Any) -> Any:
        (kind, options, count), (x, *rest) = ctx.given, ctx.saved_tensors
        _, backward = operations()
        found = backward(list(gradients), kind, x, rest[:count], rest[count:], *options)
        return (None, None, None, *found)


@cache
def operations() -> tuple[Any, Any]:
    """The two operations: results are `[the outputs, the last states ...]`, and gradients of x, states and weights."""
    forward, backward = "shaped::recurrent", "shaped::recurrent_backward"
    torch.library.define(forward, f"({_OPERANDS}) -> Tensor[]", tags=torch.Tag.pt2_compliant_tag)
    torch.library.define(backward, f"(Tensor[] gradients, {_OPERANDS}) -> Tensor[]", tags=torch.Tag.pt2_compliant_tag)
    torch.library.impl(forward, "default", _run)
    torch.library.impl(backward, "default", _differentiate)
    torch.library.register_fake(forward, _like)
    torch.library.register_fake(backward, _alike)
    return torch.ops.shaped.recurrent.default, torch.ops.shaped.recurrent_backward.default


def _call(kind: str, x: Tensor, state: Sequence[Tensor], weights: Sequence[Tensor], options: Sequence[Any],
          train: bool) -> list[Tensor]:  # fmt: skip
    biased, layers, both_ways, batch_first, sizes = options
    before = tuple(state) if kind == "lstm" else state[0]
    first, last = ((x,), (batch_first,)) if sizes is None else ((x, sizes), ())
    return list(getattr(torch, kind)(*first, before, list(weights), biased, layers, 0.0, train, both_ways, *last))


def _run(kind: str, x: Tensor, state: list[Tensor], weights: list[Tensor], biased: bool, layers: int, both_ways: bool,
         batch_first: bool, sizes: Tensor | None = None) -> list[Tensor]:  # fmt: skip
    with torch.no_grad():
        out, *states = _call(kind, x, state, weights, (biased, layers, both_ways, batch_first, sizes), train=False)
    # Time before batch in memory, as torch's kernels have it and as `_like` says.
    out = out.transpose(0, 1).contiguous().transpose(0, 1) if batch_first else out.contiguous()
    return [out, *(held.contiguous() for held in states)]


def _differentiate(gradients: list[Tensor], kind: str, x: Tensor, state: list[Tensor], weights: list[Tensor],
                   biased: bool, layers: int, both_ways: bool, batch_first: bool,
                   sizes: Tensor | None = None) -> list[Tensor]:  # fmt: skip
    given = [t.detach().requires_grad_() for t in (x, *state, *weights)]
    count = 1 + len(state)
    with torch.enable_grad():
        options = (biased, layers, both_ways, batch_first, sizes)
        results = _call(kind, given[0], given[1:count], given[count:], options, train=True)
    return [g.contiguous() for g in torch.autograd.grad(results, given, gradients)]


def _like(kind: str, x: Tensor, state: list[Tensor], weights: list[Tensor], biased: bool, layers: int,
          both_ways: bool, batch_first: bool, sizes: Tensor | None = None) -> list[Tensor]:  # fmt: skip
    first, last = x.shape[:-1], (2 if both_ways else 1) * state[0].shape[-1]
    out = x.new_empty(*(reversed(first) if batch_first else first), last)
    return [out.transpose(0, 1) if batch_first else out, *(x.new_empty(held.shape) for held in state)]


def _alike(gradients: list[Tensor], kind: str, x: Tensor, state: list[Tensor], weights: list[Tensor], biased: bool,
           layers: int, both_ways: bool, batch_first: bool, sizes: Tensor | None = None) -> list[Tensor]:  # fmt: skip
    return [t.new_empty(t.shape) for t in (x, *state, *weights)]


LAYERS: dict[Any, Callable[..., Any]] = {getattr(torch, kind): layer_of(kind) for kind in GATES}
