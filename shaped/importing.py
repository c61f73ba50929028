"""What the import of the package itself costs."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def uncollected() -> Iterator[None]:
    """Within, Python looks for no garbage, and what was made counts as old: modules stay, and to look through torch's
    takes longer than to load ours."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if not gc.get_freeze_count():  # what the user froze stays so
            gc.freeze()
            gc.unfreeze()
        if collects:
            gc.enable()
