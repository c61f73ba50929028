"""Torch's header of C++ kernels, compiled ahead by g++: with it a unit of kernels costs half as much.

Of 2.5 s of CPU for a small unit, reading the header takes 1.4 (g++ 12, torch 2.13). To compile it ahead costs as much
as two units, so no step waits for that: a process of its own begins beside the first unit that a machine compiles, and
units take the result up once it is whole. Where there is none, or one for other flags, g++ reads the header itself.
"""

import os
import shlex
import subprocess
from contextlib import suppress
from functools import cache
from hashlib import sha256
from pathlib import Path
from threading import Thread
from typing import Any

_TEXT = "#include <torch/csrc/inductor/cpp_prefix.h>\n"
_FLAGS = ("-g0",)  # of units too: what is compiled for others is not taken up
_begun: list[Thread] = []


def flags() -> tuple[str, ...]:
    """Of a unit; other compilers than g++ have no use for a header, and refuse what an older one of them compiled."""
    header = _header()
    return _FLAGS if header is None else (*_FLAGS, "-include", shlex.quote(str(header)))


def compile_ahead() -> None:
    """Begin, unless the header is there or a process is at it. That goes on when this one ends, for some seconds."""
    header = _header()
    if header is None or header.with_suffix(".h.gch").exists():
        return
    with suppress(OSError):  # another process has the lock, or the folder is not ours to write: units read the header
        _begin(header, header.with_suffix(".h.gch"))


def _begin(header: Path, whole: Path) -> None:
    import fcntl  # not on Windows, where there is no header

    with header.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if whole.exists():
            return
        made = shlex.quote(str(header.with_suffix(".new")))
        line = f"nice -n 5 {_command(header, made)} && mv -f {made} {shlex.quote(str(whole))} || rm -f {made}"
        # Ctrl-C is for the run, hence a session of its own; the lock is held until its last process ends.
        silent: dict[str, Any] = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.DEVNULL)
        process = subprocess.Popen(("sh", "-c", line), start_new_session=True, pass_fds=[lock.fileno()], **silent)
        _begun.append(Thread(target=process.wait, daemon=True))
        _begun[-1].start()


def _header() -> Path | None:
    from torch._inductor import cpp_builder
    from torch._inductor.runtime.cache_dir_utils import cache_dir

    if os.name != "posix" or not cpp_builder.is_gcc():
        return None
    try:
        folder = Path(cache_dir()) / "shaped"
        header = folder / f"prefix-{_key()}.h"
        if not header.exists():
            folder.mkdir(parents=True, exist_ok=True)
            header.write_text(_TEXT)  # one short write: another process finds it empty or whole, and empty is as good
    except OSError:
        return None
    return header


@cache
def _key() -> str:
    """Of all that what is compiled hangs on; g++ itself sees other flags, and no change of a file."""
    import torch
    from torch._inductor import cpp_builder

    file = (Path(torch.__file__).parent / "include/torch/csrc/inductor/cpp_prefix.h").stat()
    version = cpp_builder.get_compiler_version_info(cpp_builder.get_cpp_compiler())
    known = torch.__version__, version, _command(Path("prefix.h"), "made"), file.st_size, file.st_mtime_ns
    return sha256(repr(known).encode()).hexdigest()[:16]


def _command(header: Path, made: str) -> str:
    from torch._inductor.codecache import CppPythonBindingsCodeCache
    from torch._inductor.cpp_builder import CppBuilder, CppTorchDeviceOptions
    from torch._inductor.cpu_vec_isa import pick_vec_isa

    units = CppPythonBindingsCodeCache.cpp_compile_command_flags
    options = CppTorchDeviceOptions(
        vec_isa=pick_vec_isa(), device_type="cpu", extra_flags=_FLAGS, precompiling=True, **units
    )
    builder = CppBuilder(name="made", sources=shlex.quote(str(header)), BuildOption=options)
    return builder.get_command_line().replace(builder.get_target_file_path(), made)
