"""What a trainer cannot train, refused by name before anything is proved."""

import sys
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from shaped.errors import GradientError, ShapeError, listing
from shaped.optim.shards import sharded
from shaped.params import ParamList, extent
from shaped.shapes import dtype_name
from shaped_kernels.lists import WIDE


def refuse_untrainable(params: ParamList) -> None:
    """Raise where parameters hold no values, or ask for gradients that no update takes.

    Raises:
        ShapeError: They are on the meta device. GradientError: None asks for a gradient, or one is of a dtype without
            an update, was made under inference_mode, or has a hook that waits for `.grad`.
    """
    owner = type(params).__name__
    refuse_spread([*zip(params.names, params, strict=True)])
    if params.device.type == "meta":
        raise ShapeError(f"{owner} is on the meta device, which holds no values to train")
    trained = [(name, t) for name, t in zip(params.names, params, strict=True) if t.requires_grad]
    if not trained:
        raise GradientError(f"no entry of {owner} asks for a gradient: nothing to train")
    if other := [name for name, t in trained if t.dtype not in WIDE]:
        kinds = sorted({dtype_name(t.dtype) for _, t in trained if t.dtype not in WIDE})
        raise GradientError(
            f"no update takes {listing(other)} of {' and '.join(kinds)}: freeze it, or keep it in floats "
            "(torch.view_as_complex over two)"
        )
    if fixed := [name for name, t in trained if t.is_inference()]:
        raise GradientError(f"{listing(fixed)} was made under torch.inference_mode: clone it outside")
    if hooked := [name for name, t in trained if t._post_accumulate_grad_hooks]:
        raise GradientError(
            f"{listing(hooked)} has a hook that waits for .grad, and a trainer returns gradients instead: remove "
            "it; a gradient strategy can do the same"
        )


def refuse_shared_writes(params: ParamList, writes: Sequence[int]) -> None:
    """Raise ShapeError where the program writes into memory that another entry has too: a step writes into copies."""
    spans = [(t.device, t.data_ptr(), t.data_ptr() + extent(t) if t.numel() else t.data_ptr()) for t in params]
    for i in writes:
        device, start, end = spans[i]
        others = [j for j, (d, s, e) in enumerate(spans) if j != i and d == device and s < end and start < e]
        if others:
            raise ShapeError(
                f"the program writes into {params.names[i]}, which shares memory with "
                f"{listing([params.names[j] for j in others])}: keep one of them, or clone it"
            )


def refuse_foreign(module: nn.Module) -> None:
    """Raise GradientError where a module averages gradients or keeps parameters over devices, or is TorchScript's.

    Such a wrapper works in a backward pass into `.grad`, which a trainer has none of: each process would train alone.
    """
    for path, part in module.named_modules():
        where, kind = f"`{path}`" if path else "the module", _distributed(part)
        if kind is not None:
            inner = "pass what it wraps (net.module)" if hasattr(part, "module") else "make the trainer before it"
            raise GradientError(
                f"{where} is under {kind}, which works in a backward pass of its own; a trainer takes gradients "
                f"without it, so every process would train by itself: {inner}, with mesh=ranks.join() for several ranks"
            )
        if isinstance(part, torch.jit.ScriptModule):
            raise GradientError(f"{where} is TorchScript, which is no Python to trace: pass the module it was made of")
    refuse_spread([(name, p) for name, p in module.named_parameters()])


def refuse_spread(named: Sequence[tuple[str, Tensor]]) -> None:
    """Raise GradientError where parameters are DTensors."""
    if spread := [name for name, p in named if sharded(p)]:
        raise GradientError(
            f"{listing(spread)} are DTensors, spread over devices, and a trainer takes whole tensors: make it before "
            "they are distributed, with mesh=ranks.join(), and zero=3 to keep parts of them on each rank"
        )


def _distributed(part: nn.Module) -> str | None:
    """What spreads a module over devices; nothing is imported to find out."""
    if isinstance(part, nn.parallel.DistributedDataParallel | nn.DataParallel):
        return type(part).__name__
    for room, kind in _WRAPPERS:
        wrapper = getattr(sys.modules.get(room), kind, None)
        if isinstance(wrapper, type) and isinstance(part, wrapper):
            return kind if room.endswith("fsdp") else "replicate"
    return None


_WRAPPERS = (
    ("torch.distributed.fsdp", "FullyShardedDataParallel"),
    ("torch.distributed.fsdp", "FSDPModule"),
    ("torch.distributed._composable.replicate", "DDP"),
)
