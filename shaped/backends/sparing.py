"""What Inductor does over and over while it compiles and need do once, or less often.

Of the step of 148 small parameters, 4,800 loops, a table of dtypes that is made anew for each operation takes about a
fourteenth, and pairs of loops that are looked at for fusion, though the code comes out the same, an eighth (processor
time of single runs beside other work, torch 2.13).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

# Of the loops that use one buffer, how many after each are tried for fusion with it. Inductor's 64 are for an update
# of many parameters, whose loops all read one learning rate, thousands that gain nothing: the driver calls each in C++.
NEIGHBOURS = 16


@contextmanager
def spared() -> Iterator[None]:
    """Within, the table of dtypes, of which there is one, is filled when it is first asked for, and not each time."""
    from torch._inductor.dtype_propagation import DtypePropagationOpsHandler as Table

    theirs: Any = Table.__init__
    filled: list[Any] = []

    def once(self: Any) -> None:
        if not filled:
            theirs(self)
            filled.append(self)

    with patch.object(Table, "__init__", once):
        yield
