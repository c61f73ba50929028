"""Code by what it does, and by whose it is: the project's, or an installed package's."""

import dis
import hashlib
import site
import sys
import sysconfig
import types
from functools import cache
from pathlib import Path
from typing import Any

import torch

OWN = Path(__file__).resolve().parents[1]  # this package

_NAMING = ("LOAD_GLOBAL", "LOAD_NAME")


@cache
def digest_of_code(code: types.CodeType) -> str:
    """What code does, whatever file and line it stands at."""
    parts: list[Any] = [code.co_code, code.co_exceptiontable, code.co_names, code.co_varnames, code.co_freevars]
    parts += [code.co_cellvars, code.co_flags, code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount]
    parts += [code.co_name, [_constant(one) for one in code.co_consts]]
    return hashlib.sha256(repr(parts).encode("utf-8", "surrogatepass")).hexdigest()[:24]


def _constant(value: Any) -> Any:
    if isinstance(value, types.CodeType):
        return digest_of_code(value)
    if isinstance(value, frozenset):
        return sorted(map(repr, value))
    return type(value).__name__, [*map(_constant, value)] if isinstance(value, tuple) else repr(value)


@cache
def names_of(code: types.CodeType) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The globals that code and what is in it read, and all names that it uses."""
    used: dict[str, None] = {i.argval: None for i in dis.get_instructions(code) if i.opname in _NAMING}
    every = dict.fromkeys(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            inner, names = names_of(constant)
            used |= dict.fromkeys(inner)
            every |= dict.fromkeys(names)
    return tuple(used), tuple(every)


@cache
def imports_of(code: types.CodeType) -> tuple[tuple[str, int], ...]:
    """The modules that code imports where it runs, each with its level of dots."""
    found: list[tuple[str, int]] = []
    before: list[Any] = []
    for one in dis.get_instructions(code):
        if one.opname == "IMPORT_NAME":
            level = next((i.argval for i in reversed(before) if isinstance(i.argval, int)), 0)
            found.append((str(one.argval), int(level)))
        before = [*before[-2:], one]
    inner = [imports_of(constant) for constant in code.co_consts if isinstance(constant, types.CodeType)]
    return (*found, *(one for each in inner for one in each))


@cache
def sites() -> tuple[str, ...]:
    """The folders that packages are installed in."""
    paths = [sysconfig.get_path("purelib"), sysconfig.get_path("platlib"), *site.getsitepackages()]
    return tuple(dict.fromkeys([*paths, site.getusersitepackages()]))


@cache
def _installed() -> tuple[str, ...]:
    library = [sysconfig.get_path(name) for name in ("stdlib", "platstdlib")]
    paths = [*library, *sites(), str(Path(torch.__file__).parent)]
    return tuple(f"{Path(path).resolve()}/" for path in paths if path)


@cache
def is_installed(file: str) -> bool:
    """Whether a file is Python's own or an installed package's, whose versions tell what is in it."""
    return file.startswith("<frozen") or str(Path(file).resolve()).startswith(_installed())


def is_of_project(file: str) -> bool:
    """Whether a file is neither installed nor of this package, so that no version tells what is in it."""
    return not is_installed(file) and not file.startswith(str(OWN))


_OURS = ("shaped", "shaped_kernels")  # told by what is in their files


def is_library(module: Any) -> bool:
    """Whether a module of this name is Python's, an installed package's or ours, and not the project's."""
    top = str(module).partition(".")[0]
    if top in _OURS or top in sys.builtin_module_names:
        return True
    if top == "__main__":
        return False
    found = sys.modules.get(top)
    file = getattr(found, "__file__", None) or next(iter(getattr(found, "__path__", ())), None)
    if file is None:
        return found is not None and getattr(getattr(found, "__spec__", None), "origin", "") in ("built-in", "frozen")
    return is_installed(str(file))
