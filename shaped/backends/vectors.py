"""Which vector instructions compiled CPU code may use: the widest that the processor has, unasked until code fails.

Inductor asks the compiler first: it builds up to ten small libraries, of which four read all of its headers, and has
a new process load each. The code of a step answers the same question, since it is built with the same flags and
loaded. So the answer is taken for granted here; where a step cannot be built or loaded, Inductor asks as ever, and
what it then says holds from there on. On other processors than x86 it asks nothing.
"""

import os
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any
from unittest.mock import patch

_asks = False  # whether code could not be built with what was taken for granted


@contextmanager
def unasked() -> Iterator[None]:
    """Within, Inductor takes the widest instructions of the processor; what it knows outside is untouched."""
    from torch._inductor import cpu_vec_isa

    theirs = cpu_vec_isa.valid_vec_isa_list

    def instructions() -> list[Any]:
        return [_widest()] if _takes() else theirs()

    with patch.object(cpu_vec_isa, "valid_vec_isa_list", instructions):
        yield


def doubted(error: BaseException) -> bool:
    """Whether code that failed so may have been built for too much; it is asked then, and another try is due."""
    global _asks
    from torch._inductor import cpu_vec_isa

    if not _takes() or not _of_building(error):
        return False
    _asks = True
    found: Any = cpu_vec_isa.pick_vec_isa()
    return _flags(found) != _flags(_widest())


def _takes() -> bool:
    """Whether it is taken for granted: nobody has asked, nobody has chosen, and the processor can be told."""
    from torch._inductor import config

    chosen = (config.cpp.simdlen, config.cpp.vec_isa_ok, os.environ.get("ATEN_CPU_CAPABILITY"))
    return not _asks and chosen == (None, None, None) and _widest() is not None


def _of_building(error: BaseException) -> bool:
    """Whether a compiler or the loader said it, however it was wrapped since."""
    from torch._inductor.exc import CppCompileError

    chain: list[BaseException] = []
    while error not in chain:
        chain.append(error)
        error = getattr(error, "inner_exception", None) or error.__cause__ or error.__context__ or error
    return any(isinstance(one, CppCompileError | ImportError | OSError) for one in chain)


def _flags(isa: Any) -> tuple[Any, ...]:
    return str(isa), isa.build_macro(), isa.build_arch_flags()


@cache
def _widest() -> Any:
    """The first of torch's list whose instructions the processor has; None where torch is to choose."""
    from torch._inductor import cpu_vec_isa

    if sys.platform != "linux" or platform.machine() != "x86_64":
        return None
    has = cpu_vec_isa.x86_isa_checker()
    listed: list[Any] = cpu_vec_isa.supported_vec_isa_list
    found = next((isa for isa in listed if set(str(isa).split()) <= {*has}), None)
    if found is None:
        return None
    # A class of its own, for which what torch caches of the others does not count.
    isa = type(type(found).__name__, (type(found),), {"check_build": lambda self, code: True})()
    return isa if isa else None
