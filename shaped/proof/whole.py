"""Operations of ours that stay whole in a graph.

A trace defines them where it meets them; code that was kept, or goes to another process, names them before any trace.
"""

import re
from collections.abc import Callable

from shaped.proof import alignment, packed, recurrent

DEFINED_BY: dict[str, Callable[[], object]] = {
    **dict.fromkeys(("aligned", "aligned_backward"), alignment.operations),
    **dict.fromkeys(("recurrent", "recurrent_backward"), recurrent.operations),
    **dict.fromkeys(("pack", "unpack", "repack"), packed.operations),
}


def named(source: str) -> set[str]:
    """The operations of ours that code names: `torch.ops.shaped.NAME`."""
    return set(re.findall(r"\bops\.shaped\.(\w+)", source))
