"""What compiled code and proofs depend on beside the program: versions, the machine, and how torch is set.

Each is a line by a name that a reader knows, so that what differs in another process can be said.
"""

import hashlib
import os
import platform
import sys
import types
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from shaped.backends.bytecode import OWN, digest_of_code, is_of_project, sites
from shaped.backends.registered import replaced

_PROCESSOR = Path("/proc/cpuinfo")
_TELLING = ("vendor_id", "model name", "flags", "Features", "CPU implementer", "CPU part")
_VARIABLES = ("TORCHINDUCTOR_", "TORCH_", "PYTORCH_", "OMP_", "GOMP_", "MKL_", "KMP_", "DNNL_", "ONEDNN_", "ATEN_")
_APART = ("CACHE", "DIR", "LOG", "TRACE", "DEBUG")  # where things are kept, and what is told
_OTHERS = (
    "KMP_DUPLICATE_LIB_OK",
    "KMP_INIT_AT_FORK",
)  # which scikit-learn sets; no code hangs on them
_CONFIG = "torch._inductor.config"


def surroundings() -> dict[str, str]:
    """All of it, as it is now."""
    told = {
        "Python": f"{sys.implementation.cache_tag} {sys.version} {sys.flags.optimize}",
        "torch": f"{torch.__version__} {torch.version.git_version} {torch.__file__}",
        "shaped": _of_folder(OWN),
        "the installed packages": _digest(sorted(_distributions())),
        "the machine": f"{platform.system()} {platform.machine()} {platform.libc_ver()}",
        "the processor": f"{torch.backends.cpu.get_cpu_capability()} {_digest(_processor())}",
        "the environment's variables": _digest(sorted(_variables())),
    }
    import shaped_kernels

    told["shaped_kernels"] = _of_folder(Path(shaped_kernels.__file__).resolve().parent)
    return told | _settings()


def _variables() -> Iterator[str]:
    """Those that torch, its compiler and the libraries under it read."""
    for name, value in os.environ.items():
        if name.startswith(_VARIABLES) and name not in _OTHERS and not any(part in name for part in _APART):
            yield f"{name}={value}"


def _settings() -> dict[str, str]:
    """How torch is set."""
    backends = torch.backends
    told: dict[str, Any] = {
        "torch.get_num_threads()": torch.get_num_threads(),
        "torch.get_default_dtype()": torch.get_default_dtype(),
        "torch.get_default_device()": torch.get_default_device(),
        "torch.get_float32_matmul_precision()": torch.get_float32_matmul_precision(),
        "deterministic algorithms": (
            torch.are_deterministic_algorithms_enabled(),
            torch.is_deterministic_algorithms_warn_only_enabled(),
            getattr(torch.utils.deterministic, "fill_uninitialized_memory", None),
        ),
        "the attention that torch may use": (
            backends.cuda.flash_sdp_enabled(),
            backends.cuda.mem_efficient_sdp_enabled(),
            backends.cuda.math_sdp_enabled(),
            backends.cuda.cudnn_sdp_enabled(),
        ),
        "oneDNN": (backends.mkldnn.is_available(), backends.mkldnn.enabled, backends.mkl.is_available()),
        "the precision of products": _precisions(),
        "functions of torch that were replaced": sorted(_replaced()),
        "kernels of torch that were replaced": replaced(),
        "the compiler's settings": _configured(),
    }
    return {name: str(value) for name, value in told.items()}


def _precisions() -> list[str]:
    """Those of torch 2.9 and later, where they are."""
    of = {"": torch.backends, "mkldnn": torch.backends.mkldnn, "matmul": getattr(torch.backends.mkldnn, "matmul", None)}
    return [f"{name} {getattr(part, 'fp32_precision', None)}" for name, part in of.items()]


def _configured() -> list[str]:
    """The settings of the compiler that are not its own; it need not be imported for that."""
    config: Any = sys.modules.get(_CONFIG)
    if config is None:
        return []
    entries = config._config
    return sorted(f"{n} = {getattr(config, n)!r}" for n in entries if not n.startswith("_") and _is_set(config, n))


def _is_set(config: Any, name: str) -> bool:
    try:
        return not config._is_default(name) and getattr(config, name) != config._config[name].default
    except Exception:  # an alias of another setting
        return False


def _replaced() -> Iterator[str]:
    """What torch's functions are, so that one that was replaced is told, and hooks of all modules."""
    told = []
    for where, space in (("torch", vars(torch)), ("torch.nn.functional", vars(F)), ("torch.Tensor", vars(Tensor))):
        for name, one in list(space.items()):
            if not callable(one) or isinstance(one, type) or name.startswith("__"):
                continue
            told.append(f"{where}.{name} {type(one).__qualname__} {getattr(one, '__qualname__', '')}")
            told.append(
                str([d for d in getattr(one, "__defaults__", None) or () if type(d) in (bool, int, float, str)])
            )
            code = getattr(one, "__code__", None)
            if isinstance(one, types.FunctionType) and isinstance(code, types.CodeType):
                file = code.co_filename
                if not file.startswith("<") and is_of_project(file):
                    yield f"{where}.{name} {digest_of_code(code)}"
    yield _digest(sorted(told))
    for name, hooks in sorted(vars(torch.nn.modules.module).items()):
        if name.startswith("_global_") and isinstance(hooks, dict):
            for hook in hooks.values():
                code = getattr(hook, "__code__", None)
                yield f"{name} {getattr(hook, '__qualname__', type(hook))} {digest_of_code(code) if code else ''}"


def _processor() -> list[str]:
    try:
        first = _PROCESSOR.read_text().split("\n\n")[0].splitlines()
    except (OSError, UnicodeDecodeError):
        return [platform.processor(), str(torch.cpu.get_capabilities())]
    return [line for line in first if line.split(":")[0].strip() in _TELLING]


def _distributions() -> set[str]:
    """Each installed distribution with its version, as its folder is called."""
    found = set()
    within = tuple(os.path.join(folder, "") for folder in sites())
    # Some packages put copies of others within themselves on the path once they are imported.
    for folder in {entry or "." for entry in sys.path if not entry.startswith(within)} | {*sites()}:
        try:
            names = os.listdir(folder)
        except OSError:  # a zip file, or nothing
            continue
        found |= {name for name in names if name.endswith((".dist-info", ".egg-info"))}
    return found


@cache
def _of_folder(folder: Path) -> str:
    """The content of all Python files below a folder."""
    every = hashlib.sha256()
    for file in sorted(folder.rglob("*.py")):
        every.update(f"{file.relative_to(folder)}\0".encode() + file.read_bytes())
    return every.hexdigest()[:24]


def sources(modules: list[str]) -> dict[str, str]:
    """The content of the project's modules, by name; of one without a file, what was given on the command line."""
    told = {}
    for name in sorted(modules):
        file = getattr(sys.modules.get(name), "__file__", None)
        try:
            content = Path(file).read_bytes() if file else b""
        except OSError:
            content = b"missing"
        told[f"the file of `{name}`"] = hashlib.sha256(content).hexdigest()[:24]
    return told


def _digest(parts: list[str]) -> str:
    return hashlib.sha256("\n".join(parts).encode("utf-8", "surrogateescape")).hexdigest()[:24]
