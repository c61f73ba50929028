"""Moving parameters into one block of memory, after which a CPU update costs the same for 1 and for 1000 of them."""

from collections.abc import Iterable

import torch
from torch import Tensor

from shaped.arguments import checked
from shaped_kernels.flat import offsets_of, views
from shaped_kernels.lists import is_dense


@checked
def flatten_parameters(params: Iterable[Tensor], *, grads: bool = False) -> None:
    """Move parameters into one block, in place: the same tensors, other memory.

    Call it once, before the optimizer is made and before anything takes views or addresses of the
    parameters (DDP, shared memory). `Module.to()` undoes it: call it after.

    Args:
        params: Dense parameters of one dtype and device; one that comes twice is moved once.
        grads: Give each a gradient of zeros in a second block too. Backward passes then add into it,
            so clear it with `zero_grad(set_to_none=False)` or the optimizer's `zero_grads=True`.

    Raises:
        ValueError: They differ in dtype or device, or one is no dense block; nothing has changed.
    """
    members = list({id(p): p for p in params}.values())
    faults = [
        f"  params[{i}]: expected {members[0].dtype} on {members[0].device}, got {p.dtype} on {p.device}"
        for i, p in enumerate(members)
        if (p.dtype, p.device) != (members[0].dtype, members[0].device)
    ]
    faults += [f"  params[{i}]: is no dense block of memory" for i, p in enumerate(members) if not is_dense(p)]
    if faults:
        raise ValueError("these parameters cannot share one block; nothing was changed.\n" + "\n".join(faults))
    if not members:
        return
    offsets, total = offsets_of(members)
    with torch.no_grad():
        block = members[0].new_zeros(total)
        moved = views(block, members, offsets)
        torch._foreach_copy_(moved, [p.detach() for p in members])
        slopes = views(torch.zeros_like(block), members, offsets) if grads else []
        for p, view in zip(members, moved, strict=True):
            p.data = view
        for p, slope in zip(members, slopes, strict=False):
            if p.requires_grad:
                p.grad = slope
