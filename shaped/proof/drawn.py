"""What gives another value at each call, so that no trace of it is the program: generators, the clock, the system."""

import io
import types
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from shaped.errors import Source
from shaped.proof.reads import own

CLOCK, FILE, FILES, PROCESS = "the clock", "a file", "the file system", "another process"
SEED, STATE, VERSION = "the seed of torch's generator", "the state of this process", "how often a tensor was written"
FOREIGN = "what a function of C gives"
QUEUE, OTHERS, INPUT = "a queue", "what another thread does", "what is typed"
WAITED = {QUEUE, OTHERS, INPUT}  # a proof, which runs a program more than once, might wait for ever
READ = {CLOCK, FILE, FILES, PROCESS, SEED, STATE, VERSION, FOREIGN, *WAITED}  # not drawn, but read
_QUEUES = {"queue", "_queue", "multiprocessing.queues", "multiprocessing.connection", "asyncio.queues", "_socket"}
_TAKES = {"get", "get_nowait", "join", "recv", "recv_bytes", "recv_bytes_into", "recv_into", "accept", "poll", "put"}
_OPENERS = {  # pathlib's and the like
    *("read_text", "read_bytes", "open", "load", "loadtxt", "fromfile", "genfromtxt", "memmap"),
}
_LOOKS = {  # whether a file is there, how large it is, what a folder holds
    *("exists", "lexists", "isfile", "isdir", "islink", "getsize", "getmtime", "getatime", "getctime", "samefile"),
    *("is_file", "is_dir", "is_symlink", "stat", "lstat", "fstat", "listdir", "scandir", "access", "readlink"),
    *("iterdir", "glob", "iglob", "rglob", "walk", "getcwd", "getcwdb"),
}
_SYSTEM = {"posix", "nt", "os", "genericpath", "posixpath", "ntpath", "pathlib", "glob"}
_CLOCKS = {
    *("time", "time_ns", "perf_counter", "perf_counter_ns", "monotonic", "monotonic_ns"),
    *("process_time", "process_time_ns", "thread_time", "thread_time_ns", "localtime", "gmtime"),
    *("clock_gettime", "clock_gettime_ns", "strftime", "ctime", "asctime"),
}
_PARSED = {
    *(("configparser", "read"), ("linecache", "getline"), ("linecache", "getlines")),
    *(("gzip", "open"), ("bz2", "open"), ("zipfile", "__init__")),
}
_READS = {
    "read",
    "read1",
    "readall",
    "readinto",
    "readline",
    "readlines",
    "getvalue",
    "getbuffer",
    "peek",
    "tell",
}  # of a file
_WRITERS = ("dump", "save", "write", "print")  # what is given a file to write into, of whatever library
_OF_OBJECTS = {"getrefcount", "getweakrefcount", "getweakrefs", "_getframe", "currentframe"}  # counts, frames
_SEEDS = {"manual_seed", "seed", "initial_seed", "get_rng_state", "set_rng_state", "fork_rng", "get_state", "set_state"}


@dataclass(frozen=True)
class Drawn:
    """Something that gives another value at each call: a generator, the clock, or a file."""

    what: str
    source: Source | None


def draws(function: Any, given: int) -> str:
    """What a callable or a generator draws from, if each call gives something else; empty if none.

    Args:
        function: What is read or called.
        given: With how many arguments it is called; -1 where it is only read.
    """
    owner = own(function, "__self__", None)
    for held in (function, owner):
        kind = type(held)
        if held is None or isinstance(held, type):
            continue
        if any(c.__module__ == "random" and c.__name__ == "Random" for c in kind.__mro__):
            return "Python's `random`"
        if kind.__module__.startswith("numpy.random"):
            return "NumPy's generator"
        if kind is torch.Generator and held is not torch.default_generator:
            return "a generator of its own"
        if kind.__module__ in ("builtins", "itertools", "_csv") and hasattr(kind, "__next__"):
            return "an iterator"
        if kind.__module__ == "sqlite3":
            return FILE
        if given >= 0 and any(c.__module__ == "_ctypes" and c.__name__ == "CFuncPtr" for c in kind.__mro__):
            return FOREIGN
    module, name = own(function, "__module__", None) or "", own(function, "__name__", "")
    if isinstance(owner, io.IOBase) and name in _READS:
        return FILE
    if ("cuda" in module and "memory" in name) or name in _OF_OBJECTS:
        return STATE
    if name in _SEEDS and (
        owner is torch.default_generator or (module.startswith("torch") and module.endswith("random"))
    ):
        return SEED
    if isinstance(owner, types.ModuleType) and owner.__name__ == "time" and name in _CLOCKS:
        return CLOCK
    if isinstance(owner, type) and owner.__module__ == "datetime" and name in ("now", "utcnow", "today"):
        return CLOCK
    if name == "urandom" or (module == "uuid" and name in ("uuid1", "uuid4")) or module == "secrets":
        return "the system's entropy"
    if name == "default_rng" and given == 0:
        return "NumPy's generator"
    return ""


def waits(function: Any) -> str:
    """What a call may wait for, or takes away for good: what others put there; empty if nothing."""
    owner, name = own(function, "__self__", None), own(own(function, "__func__", function), "__name__", "")
    modules = {kind.__module__ for kind in type(owner).__mro__}
    if name in _TAKES and modules & _QUEUES:
        return QUEUE
    if name in ("wait", "start") and "threading" in modules:
        return OTHERS
    return INPUT if function is input else ""


def _is_readable(value: Any) -> bool:
    try:
        return isinstance(value, io.IOBase) and value.readable()
    except ValueError:  # it is closed
        return False


def opens(function: Any, given: Sequence[Any]) -> str:
    """That a call reads a file, if it does, or what the system says; a log that is written is no value of a loss's."""
    function = own(function, "__func__", function)
    module, name = own(function, "__module__", None) or "", own(function, "__name__", "")
    if asked := asks(str(module), name):
        return asked
    if any(map(_is_readable, given)) and not name.startswith(_WRITERS):
        return FILE
    if function is io.FileIO:
        return "" if any(set(m) & set("wax") for m in given[1:] if isinstance(m, str)) else FILE
    if function is not open and not (name in _OPENERS and str(module).split(".")[0] in ("pathlib", "numpy", "torch")):
        return ""
    modes = [mode for mode in given[function is open :] if isinstance(mode, str) and len(mode) < 4]
    return "" if any(set(mode) & set("wax") for mode in modes) else FILE


def asks(module: str, name: str) -> str:
    """What a function of the standard library, by its module and its name, asks the system for; empty if nothing."""
    if module.split(".")[0] in _SYSTEM and name in _LOOKS:
        return FILES
    if (module in ("gc", "resource") and name.startswith("get")) or (
        module == "posix" and name in ("times", "getloadavg")
    ):
        return STATE
    if module == "subprocess" or (module == "os" and name == "popen"):
        return PROCESS
    if (module, name) in _PARSED:
        return FILE
    read = (module in ("posix", "nt") and name in ("read", "pread")) or name in ("read_text", "read_bytes")
    return FILE if read and module.split(".")[0] in _SYSTEM else ""
