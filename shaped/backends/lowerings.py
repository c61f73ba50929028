"""Lowerings of torch that are known to be wrong: what, in which versions, where it is reported, and how it is mended.

`KNOWN` is the table. An operation is mended in one of four ways: its code is corrected while a graph is lowered, it is
kept out of Inductor (it runs as torch runs it eagerly), it has a decomposition of ours, or the proof takes another form
of it (`proof/rewrites.py`). What is mended is part of the key of torch's on-disk cache.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor


@dataclass(frozen=True)
class Fault:
    """One lowering or decomposition that gives other numbers than torch's own kernels.

    Attributes:
        operation: As it stands in a graph, or what generated code does.
        versions: Of torch, as far as it was tried.
        wrong: What is computed.
        reported: Where.
        mended: How.
    """

    operation: str
    versions: str
    wrong: str
    reported: str
    mended: str


KNOWN: tuple[Fault, ...] = (
    Fault(
        "avg_pool2d_backward, avg_pool3d_backward",
        "2.13",
        "with ceil_mode the last window's gradient is divided by the whole kernel, up to 64 % off (lp_pool too)",
        "pytorch issue 198119",
        "torch's own kernel where ceil_mode is set",
    ),
    Fault(
        "multilabel_margin_loss",
        "2.13",
        "labels after -1 count as class 0",
        "pytorch issue 185464",
        "another form in the proof",
    ),
    Fault(
        "multilabel_margin_loss, multi_margin_loss",
        "2.13",
        "a margin that is NaN is kept, where torch's kernels count none; one of exactly 0 has a gradient",
        "not reported",
        "another form in the proof",
    ),
    Fault(
        "comparisons of bfloat16 and float16",
        "2.13",
        "what is computed again for it is not rounded: a maximum equals no entry, and its gradient is 0",
        "not reported",
        "torch's own kernel",
    ),
    Fault(
        "loops over tiles on a CPU",
        "before 2.15",
        "with several threads, what is added (index_put) lands at another index",
        "not reported",
        "corrected",
    ),
    Fault(
        "reductions in loops over tiles on a CPU",
        "2.13, 2.14",
        "the last, partial tile is stored in whole, over its neighbours or beyond the end",
        "pytorch issue 196681",
        "corrected",
    ),
    Fault(
        "concatenations",
        "2.11 to 2.15",
        "memory of a part that is written in place is given away while the whole is in use",
        "not reported",
        "corrected",
    ),
    Fault(
        "additions at indices on a CPU (index_put, gradients of max pooling and nearest upsampling)",
        "before 2.14",
        "what reads the sums is fused with loops of other ranges and then runs before the addition: it reads zeros",
        "pytorch issue 185509",
        "corrected",
    ),
    Fault(
        "writes at indices (index_add, index_put, index_copy, index_fill) into an expanded tensor, as gradients "
        "under vmap make them",
        "2.13",
        "done in place, into the memory that all rows share: each row has the sum of all",
        "pytorch issues 183986, 188084",
        "corrected",
    ),
    Fault(
        "minima and maxima of 8-bit integers on a CPU, and where they are",
        "2.13",
        "what is left of whole vectors is filled up with zeros, and 0 is the least of positive numbers",
        "pytorch issue 191499",
        "a decomposition of ours",
    ),
    Fault(
        "softmax and its like over a tensor that is written at indices, on a CPU",
        "2.13",
        "the compiler looks for a read that is not there, and refuses the step",
        "pytorch issue 196570",
        "corrected",
    ),
    Fault(
        "softshrink",
        "2.13",
        "NaN becomes 0",
        "not reported",
        "a decomposition of ours",
    ),
    Fault(
        "hardtanh_backward (relu6 too)",
        "2.13",
        "a gradient where the input is NaN; torch's kernel gives 0 in whole vectors and the gradient beside them",
        "not reported",
        "left: eager itself is of two minds",
    ),
    Fault(
        "logit_backward",
        "2.13",
        "minus infinity at -0.0, where torch's kernel gives infinity",
        "not reported",
        "a decomposition of ours",
    ),
    Fault(
        "remainder, floor_divide of floats",
        "2.13",
        "computed from a rounded quotient: 3e38 % 3 is 0 for 2, and so is what is above 2**24 times the divisor",
        "not reported",
        "a decomposition of ours",
    ),
    Fault(
        "gelu",
        "2.13",
        "no overflow above 2e38, and infinity of infinity, where torch's vectorised kernel has infinity and NaN",
        "not reported",
        "left: compiled code is nearer to the exact value",
    ),
    Fault(
        "addcmul, addcdiv, x ** 0.5, group_norm, instance_norm",
        "2.14",
        "other results where a product overflows, other infinities or zeros in gradients at -0.0 and infinity",
        "not reported",
        "left: the first batch that has it is an error",
    ),
    Fault(
        "gradients of smooth_l1_loss and soft_margin_loss",
        "2.14",
        "a number at NaN or beyond overflow, where torch's kernels give NaN; the loss is not finite on both",
        "not reported",
        "left: a step on such a loss is refused on both",
    ),
    Fault(
        "gradient of quantile, nanquantile",
        "2.14",
        "of equal elements another one has it",
        "not reported",
        "left: both are subgradients",
    ),
    Fault(
        "mean over no element",
        "2.14",
        "the compiler refuses some (mse_loss), where eager gives NaN",
        "not reported",
        "left: refused with the compiler's words",
    ),
    Fault(
        "remainder by a subnormal number",
        "2.14",
        "0, where torch's vectorised kernel gives NaN",
        "not reported",
        "left: compiled code is the exact value",
    ),
    Fault(
        "gradient of prod",
        "2.13",
        "NaN where a factor is 0 and another is infinite, as in every trace; eager counts the zeros first",
        "not reported",
        "left: the first batch that has it is an error",
    ),
)
MENDED = "; ".join(f"{fault.operation}: {fault.mended}" for fault in KNOWN)  # another text, another cache


def decompositions() -> dict[torch._ops.OpOverload, Callable[..., Tensor]]:
    """Ours, in place of torch's."""
    aten = torch.ops.aten
    return {
        aten.softshrink.default: _softshrink,
        aten.logit_backward.default: _logit_backward,
        aten.remainder.Scalar: _remainder,
        aten.remainder.Tensor: _remainder,
        aten.remainder.Scalar_Tensor: _remainder_of_number,
        aten.floor_divide.default: _floor_divide,
        aten.div.Tensor_mode: _divide,
        **{of: _widened(of) for of in (aten.amin.default, aten.amax.default, aten.argmin.default, aten.argmax.default)},
        **{of: _widened(of) for of in (aten.min.default, aten.max.default, aten.min.dim, aten.max.dim)},
    }


def _widened(operation: torch._ops.OpOverload) -> Callable[..., Any]:
    """A reduction of 8-bit integers as one of integers of 32 bits."""

    def reduced(x: Tensor, *args: Any, **kwargs: Any) -> Any:
        if x.dtype not in (torch.int8, torch.uint8):
            return NotImplemented
        found = operation(x.to(torch.int32), *args, **kwargs)
        if isinstance(found, Tensor):
            return found if found.dtype is torch.int64 else found.to(x.dtype)
        return found[0].to(x.dtype), found[1]

    return reduced


def _floats(x: Any, y: Any) -> bool:
    """Whether two operands are of one floating-point dtype; the rest is left as it is."""
    both = isinstance(x, Tensor) and x.is_floating_point()
    return both and (x.dtype == y.dtype if isinstance(y, Tensor) else isinstance(y, int | float))


def _remainder(x: Tensor, y: Any) -> Tensor:
    if not _floats(x, y):
        return NotImplemented
    rest = torch.fmod(x, y)
    return torch.where((rest != 0) & ((rest < 0) != (y < 0)), rest + y, rest)


def _remainder_of_number(x: float, y: Tensor) -> Tensor:
    return _remainder(torch.full_like(y, x), y) if y.is_floating_point() else NotImplemented


def _floor_divide(x: Tensor, y: Any) -> Tensor:
    if not _floats(x, y):
        return torch.div(x, y, rounding_mode="floor")
    rest, quotient = torch.fmod(x, y), x / y
    whole = (x - rest) / y
    whole = torch.where((rest != 0) & ((rest < 0) != (y < 0)), whole - 1, whole)
    floor = whole.floor()
    floor = torch.where(whole - floor > 0.5, floor + 1, floor)
    zero = torch.copysign(torch.zeros_like(quotient), quotient)
    floor = torch.where(whole == 0, zero, floor)
    if not isinstance(y, Tensor):
        return quotient if y == 0 else floor
    return torch.where(y == 0, quotient, floor)


def _divide(x: Tensor, y: Any, rounding_mode: str | None = None) -> Tensor:
    return _floor_divide(x, y) if rounding_mode == "floor" and _floats(x, y) else NotImplemented


def _softshrink(x: Tensor, lambd: float = 0.5) -> Tensor:
    shrunk = torch.where(x > lambd, x - lambd, torch.where(x < -lambd, x + lambd, 0.0 * x))
    return torch.where(x.isnan() | x.isinf(), x, shrunk)  # 0 times infinity is NaN


def _logit_backward(grad: Tensor, x: Tensor, eps: float | None = None) -> Tensor:
    slope = grad / (x * (1.0 - x))
    if eps is not None and eps >= 0:
        return torch.where((x < eps) | (x > 1.0 - eps), 0.0, slope)
    inside = torch.where((x == 0.0) | (x == 1.0), grad * torch.inf, slope)
    return torch.where((x < 0.0) | (x > 1.0), torch.nan, inside)


@contextmanager
def mended() -> Iterator[None]:
    """Lower with all of the table mended."""
    with ExitStack() as stack:
        for mend in (
            _tiles_mended,
            _tails_mended,
            _parts_kept,
            _order_kept,
            _out_of_place,
            _apart_from_writes,
            _kept_out,
            _alike_in_ci,
        ):
            mend(stack)
        yield


def _kept_out(stack: ExitStack) -> None:
    """Operations that run as torch runs them eagerly where their code would be wrong."""
    from torch._inductor.lowering import fallback_handler, lowerings

    def unless(operation: torch._ops.OpOverload, wrong: Callable[..., bool]) -> Callable[..., Any]:
        theirs, kernel = lowerings[operation], fallback_handler(operation, add_to_fallback_set=False)

        def lowered(*args: Any, **kwargs: Any) -> Any:
            return (kernel if wrong(*args, **kwargs) else theirs)(*args, **kwargs)

        return lowered

    aten = torch.ops.aten
    pools = (aten.avg_pool2d_backward.default, aten.avg_pool3d_backward.default)
    kept = {pool: unless(pool, _has_ceil_mode) for pool in pools}
    compared = (getattr(aten, name).Tensor for name in ("eq", "ne", "lt", "le", "gt", "ge"))
    kept |= {comparison: unless(comparison, _are_halves) for comparison in compared}
    stack.enter_context(patch.dict(lowerings, kept))


def _alike_in_ci(stack: ExitStack) -> None:
    """Run what has no lowering as torch runs it eagerly; where the variable CI is set, Inductor refuses it."""
    from torch._inductor import graph

    stack.enter_context(patch.object(graph, "make_fallback", partial(vars(graph)["make_fallback"], warn=False)))


def _has_ceil_mode(grad: Any, x: Any, size: Any, stride: Any, padding: Any, ceil_mode: bool, *rest: Any) -> bool:
    return ceil_mode


def _are_halves(x: Any, y: Any) -> bool:
    """Code computes halves in float32, and what it computes again for a comparison it does not round."""
    return all(getattr(one, "dtype", None) in (torch.bfloat16, torch.float16) for one in (x, y))


def _tiles_mended(stack: ExitStack) -> None:
    """For torch before 2.15, whose C++ loops over tiles add at another index than the one computed.

    Where a loop has several threads, `store` moves the index by the place in the tile, and the index is moved again
    when it is made a vector. Such an addition must skip the first.
    """
    if torch.__version__ >= "2.15":  # compared as versions
        return
    from torch._inductor import config
    from torch._inductor.codegen.cpp import CppTile2DKernel, CppVecKernel

    theirs = CppTile2DKernel.store

    def store(self: Any, name: str, index: Any, value: Any, mode: Any = None) -> None:
        adds = mode == "atomic_add" and (config.cpp.dynamic_threads or self.num_threads != 1)
        of = CppVecKernel.store if adds and not self.need_vec_transpose(self.rename_indexing(index)) else theirs
        of(self, name, index, value, mode)

    stack.enter_context(patch.object(CppTile2DKernel, "store", store))


def _tails_mended(stack: ExitStack) -> None:
    """Store the results of a reduction from the loop, main or tail, that computed them.

    Torch tells the two apart where the reduction is the next loop below the tiled one, and for one tiled loop wherever
    it is; with two, and a loop between, the main loop's whole vector is stored for the tail as well.
    """
    from torch._inductor.codegen.cpp import CppKernelProxy

    theirs = CppKernelProxy.aggregate_reduction_buffers

    def aggregate(self: Any, apart: bool, outer: Any) -> None:
        loops = self.loop_nest.loops or []
        if outer is not None and not apart and not outer.is_reduction and len(self.kernels) > 1:
            level = next((i for i, loop in enumerate(loops) if loop is outer), len(loops))
            apart = any(loop.is_reduction for loop in loops[level + 1 :])
        theirs(self, apart, outer)

    stack.enter_context(patch.object(CppKernelProxy, "aggregate_reduction_buffers", aggregate))


def _parts_kept(stack: ExitStack) -> None:
    """Keep operations from writing in place into a part of a concatenation, which lies in the memory of the whole.

    What is written there would count as a buffer of its own, whose memory is given to another while the whole is still
    in use: silently wrong numbers (torch 2.11 to 2.15).
    """
    from torch._inductor.codegen.wrapper import PythonWrapperCodegen
    from torch._inductor.ir import NonOwningLayout

    theirs = PythonWrapperCodegen.can_reuse

    def can_reuse(self: Any, buffer: Any, output: Any = None) -> bool:
        in_place = output is not None and getattr(buffer, "node", None) is not None
        if in_place and isinstance(buffer.node.get_output_spec(), NonOwningLayout):
            return False
        return bool(theirs(self, buffer, output))

    stack.enter_context(patch.object(PythonWrapperCodegen, "can_reuse", can_reuse))


def _out_of_place(stack: ExitStack) -> None:
    """Write at indices into a copy, as the graph says.

    Torch's pass that writes into the memory of what is written to overlooks memory that several elements share, and
    what reads that memory later under another name. Parameters and moments are written in place all the same: each
    by the copy that ends the graph.
    """
    from torch._inductor.fx_passes import reinplace

    stack.enter_context(patch.object(reinplace, "reinplace_inplaceable_ops_core", lambda graph: None))


def _apart_from_writes(stack: ExitStack) -> None:
    """Keep in memory of its own what another loop writes into, which has no place that it is read from."""
    from torch._inductor.loop_body import LoopBody

    def or_none(place: Callable[..., Any]) -> Callable[..., Any]:
        def found(self: Any, name: str) -> Any:
            try:
                return place(self, name)
            except KeyError:
                return None

        return found

    for name in ("get_read_expr", "get_write_expr"):
        stack.enter_context(patch.object(LoopBody, name, or_none(getattr(LoopBody, name))))


def _order_kept(stack: ExitStack) -> None:
    """Keep what reads a buffer behind the operation that has written into it, for torch before 2.14.

    Where two loops are fused whose ranges differ, their dependencies are read from their code once more. There a
    buffer has the name that it had before it was written into, so that its reader would wait for the first value alone.
    """
    if torch.__version__ >= "2.14":  # compared as versions
        return
    from torch._inductor.dependencies import StarDep, WeakDep
    from torch._inductor.scheduler import SchedulerNode
    from torch.utils._ordered_set import OrderedSet

    theirs = SchedulerNode.recompute_size_and_body

    def recompute(self: Any, *args: Any, **kwargs: Any) -> None:
        added = OrderedSet(dep for dep in self.read_writes.reads if isinstance(dep, StarDep | WeakDep))
        theirs(self, *args, **kwargs)
        self.set_read_writes(self.read_writes.with_read(added).rename(self.mutation_renames))

    stack.enter_context(patch.object(SchedulerNode, "recompute_size_and_body", recompute))
