"""Which vector instructions compiled CPU code may use: found out once on a machine, instead of once a process.

Inductor builds a small library for each set of instructions and has a new process load it, at each start anew, though
it keeps the libraries. Here it is remembered that one was loaded, in Inductor's own cache folder, under a name made of
all that the answer depends on: the code, the compiler and its flags, torch, the processor's instructions and where
libraries are looked for. Only a yes is remembered; where anything is new or cannot be read, it is asked as ever.
"""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from shaped import files

_PROCESSOR = Path("/proc/cpuinfo")
_TELLING = ("vendor_id", "model name", "stepping", "microcode", "flags", "Features", "CPU implementer", "CPU part")


@contextmanager
def remembered() -> Iterator[None]:
    """Within, Inductor's question whether code for a set of instructions can be built and loaded is asked once."""
    from torch._inductor.cpu_vec_isa import VecISA

    theirs = VecISA.check_build

    def check_build(self: Any, code: str) -> bool:
        record = _record(self.build_arch_flags(), code)
        if record is not None and record.is_file():
            return True
        answer = theirs(self, code)
        if answer and record is not None:
            with suppress(OSError):  # a folder that cannot be written: the next process asks again
                record.parent.mkdir(parents=True, exist_ok=True)
                files.replace(record, b"")
        return answer

    with patch.object(VecISA, "check_build", check_build):
        yield


def _record(flags: str, code: str) -> Path | None:
    """The empty file that stands for a yes; None where the processor cannot be told from another."""
    from torch._inductor.cpp_builder import get_compiler_version_info, get_cpp_compiler
    from torch._inductor.runtime.cache_dir_utils import cache_dir

    try:
        first = _PROCESSOR.read_text().split("\n\n")[0].splitlines()
    except (OSError, UnicodeDecodeError):
        return None
    processor = [line for line in first if line.split(":")[0].strip() in _TELLING]
    if not processor:
        return None
    compiler = get_cpp_compiler()
    sought = [os.environ.get(name, "") for name in ("LD_LIBRARY_PATH", "LD_PRELOAD")]
    told = [code, flags, compiler, get_compiler_version_info(compiler), torch.__version__, torch.__file__]
    name = hashlib.sha256("\0".join([*told, *sought, *processor]).encode()).hexdigest()
    return Path(cache_dir()) / "shaped" / f"vectors-{name}"
