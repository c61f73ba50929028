"""The C++ kernels of a graph as one library, or a few that are built at once where there is much code.

Inductor compiles each kernel by itself: of 2.6 s of CPU for one, reading its headers takes 2.4 (g++ 12). Here they
stand in one file and share that. Inductor's precompiled header is left out for ours: its first kernel waits for it, and
a second process runs the preprocessor over the headers to see whether they are as they were.
"""

import os
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

from shaped.backends import headers
from shaped.backends.calls import DRIVEN, Segment, read
from shaped.backends.driver import Driver, address_of, addresses, functions, products, torchs, written

# Bytes of kernels in one file. So much is compiled in the time that the headers take (14 ms per 1,000, torch 2.13).
LARGEST = 150_000
_INCLUDE = re.compile(r"(?m)^[ \t]*#[ \t]*include[^\n]*\n")


@dataclass(frozen=True)
class _Kernel:
    """A kernel that is not yet compiled: what it takes, as C++ types, and its source, which defines `kernel`."""

    takes: Sequence[str]
    source: str


@contextmanager
def together() -> Iterator[None]:
    """Within, this thread's C++ kernels of one graph are compiled into one library, with a driver for the step."""
    from torch._inductor import config
    from torch._inductor.async_compile import AsyncCompile

    one, every, here = AsyncCompile.cpp_pybinding, AsyncCompile.wait, threading.get_ident()

    def cpp_pybinding(self: Any, takes: list[str], source: str) -> Any:
        return _Kernel(takes, source) if threading.get_ident() == here else one(self, takes, source)

    def wait(self: Any, scope: dict[str, Any]) -> None:
        kernels = {name: value for name, value in scope.items() if isinstance(value, _Kernel)}
        if kernels:
            scope.update(_built_in(scope, kernels))
        every(self, scope)

    of = patch.object
    plain = config.patch(cpp_cache_precompile_headers=False)
    with plain, of(AsyncCompile, "cpp_pybinding", cpp_pybinding), of(AsyncCompile, "wait", wait):
        yield


@contextmanager
def given(arguments: Sequence[Any]) -> Iterator[None]:
    """Within, a graph of these arguments is compiled, which a driver must know; without, there is none."""
    token = _given.set(arguments)
    try:
        yield
    finally:
        _given.reset(token)


_given: ContextVar[Sequence[Any] | None] = ContextVar("_given", default=None)


def _built_in(scope: dict[str, Any], kernels: Mapping[str, _Kernel]) -> dict[str, Any]:
    """What to put into a generated module for its kernels."""
    from torch._inductor.exc import CppCompileError

    arguments, reading = _given.get(), None
    if arguments is not None:
        text = Path(scope["__file__"]).read_text()
        reading = read(text, {name: kernel.takes for name, kernel in kernels.items()}, arguments, products())
    source, segments = reading or ("", [])
    try:
        functions, driver = built(kernels, source, segments)
    except CppCompileError:
        if not segments:
            raise
        functions, driver = built(kernels, "", [])  # a torch or a compiler that we do not know
    if driver is None:
        return functions
    scope.update({drive.__name__: drive for drive in driver.drives})
    exec(compile(source, "<the driver of a step>", "exec"), scope)
    return {**functions, "shaped_driver": replace(driver, run=scope[DRIVEN])}


def built(
    kernels: Mapping[str, _Kernel], source: str = "", segments: Sequence[Segment] = ()
) -> tuple[dict[str, Callable[..., None]], Driver | None]:
    """The functions of kernels, which torch's on-disk cache keeps, and the driver of segments, where there are any."""
    from torch._inductor.codecache import CppPythonBindingsCodeCache

    names = [*kernels]
    parts = _parts([len(kernel.source) for kernel in kernels.values()])
    others = [names[i] for part in parts[1:] for i in part] if segments else []
    with ThreadPoolExecutor(len(parts)) as pool:

        def submit(work: Callable[[], None]) -> Any:  # it is called where the cache has no library
            headers.compile_ahead()
            return pool.submit(work)

        texts = [
            _file(
                [kernels[names[i]] for i in part],
                *_driver_in(names, kernels, part, segments if at == 0 else (), others),
            )
            for at, part in enumerate(parts)
        ]
        load, flags = CppPythonBindingsCodeCache.load_async, headers.flags()
        libraries = [load(text, submit_fn=submit, extra_flags=flags) for text in texts]
        modules = [library() for library in libraries]
    found = {names[i]: getattr(m, f"kernel{at}") for m, part in zip(modules, parts, strict=True)
             for at, i in enumerate(part)}  # fmt: skip
    if not segments:
        return found, None
    drives = [getattr(modules[0], f"drive{number}") for number in range(len(segments))]
    driver = Driver(source, drives, torchs(segments), [found[name] for name in others], drives[0])
    if "link" in vars(modules[0]):
        modules[0].link(*addresses(driver.torchs), *map(address_of, driver.others))
    return found, driver


def _driver_in(
    names: Sequence[str],
    kernels: Mapping[str, _Kernel],
    part: Sequence[int],
    segments: Sequence[Segment],
    others: Sequence[str],
) -> tuple[str, Sequence[str]]:
    """The C++ of a driver in a part of the kernels, and its functions."""
    if not segments:
        return "", ()
    here = {names[i]: (f"unit{at}::kernel{at}", kernels[names[i]].takes) for at, i in enumerate(part)}
    there = {name: (f"other{at}", kernels[name].takes) for at, name in enumerate(others)}
    return written(segments, {**here, **there}, others), functions(segments, others)


def _parts(sizes: Sequence[int]) -> list[list[int]]:
    """Which kernels go together: in as many parts of about one size as are worth their headers and have a core."""
    count = max(1, min(-(-sum(sizes) // LARGEST), _cores(), len(sizes)))
    parts: list[list[int]] = [[] for _ in range(count)]
    for i in sorted(range(len(sizes)), key=lambda i: -sizes[i]):  # the largest first, each to the smallest part
        min(parts, key=lambda part: sum(sizes[j] for j in part)).append(i)
    return [sorted(part) for part in parts]


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _file(kernels: Sequence[_Kernel], driver: str = "", functions: Sequence[str] = ()) -> str:
    """One C++ file: each kernel in a namespace and under a name of its own, a driver, and a Python module of them."""
    includes = dict.fromkeys(line for kernel in kernels for line in _INCLUDE.findall(kernel.source))
    bodies = [
        f"namespace unit{i} {{\n#define kernel ONCE kernel{i}\n{_INCLUDE.sub('', kernel.source)}\n#undef kernel\n}}\n"
        for i, kernel in enumerate(kernels)
    ]
    calls = "".join(_call(i, kernel) for i, kernel in enumerate(kernels))
    called = {f"kernel{i}": f"call{i}" for i in range(len(kernels))} | {name: f"driver::{name}" for name in functions}
    rows = "".join(f'    {{"{n}", (PyCFunction)(void*){f}, METH_FASTCALL, ""}},\n' for n, f in called.items())
    pointers = "".join(f"    (void*)unit{i}::kernel{i},\n" for i in range(len(kernels)))
    return "".join(
        [*includes, _ONCE, *bodies, _HEAD, calls, driver, _TAIL.replace("ROWS", rows).replace("POINTERS", pointers)]
    )


def _call(number: int, kernel: _Kernel) -> str:
    types = [taken.replace("const ", "") for taken in kernel.takes]
    arguments = ", ".join(f"argument<{taken}>(given[{i}])" for i, taken in enumerate(types))
    return _CALL.replace("NUMBER", str(number)).replace("COUNT", str(len(types))).replace("ARGUMENTS", arguments)


# A kernel has two callers, and to write it into both takes longer.
_ONCE = """
#ifdef __GNUC__
#define ONCE __attribute__((noinline))
#else
#define ONCE
#endif
"""
_HEAD = """
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <cerrno>
#include <cstdlib>
#include <stdexcept>
#include <string>

static void* (*address)(PyObject*);  // of a tensor's memory; torch tells where it is, so none of its headers is needed

template <typename T> static inline T argument(PyObject* given) {
    static_assert(std::is_pointer_v<T>, "a pointer or a number");
    return static_cast<T>(address(given));
}
template <> inline int64_t argument<int64_t>(PyObject* given) {
    auto number = PyLong_AsSsize_t(given);
    if (number == -1 && PyErr_Occurred()) throw std::runtime_error("expected int arg");
    return number;
}
template <> inline uintptr_t argument<uintptr_t>(PyObject* given) {
    auto number = PyLong_AsVoidPtr(given);
    if (number == reinterpret_cast<void*>(-1) && PyErr_Occurred()) throw std::runtime_error("expected int arg");
    return reinterpret_cast<uintptr_t>(number);
}
template <> inline double argument<double>(PyObject* given) {
    auto number = PyFloat_AsDouble(given);
    if (number == -1.0 && PyErr_Occurred()) throw std::runtime_error("expected float arg");
    return number;
}
template <> inline float argument<float>(PyObject* given) {
    return static_cast<float>(argument<double>(given));
}
"""
_CALL = """
static PyObject* callNUMBER(PyObject*, PyObject* const* given, Py_ssize_t count) {
    try {
        if (count != COUNT) throw std::runtime_error("requires COUNT args");
        unitNUMBER::kernelNUMBER(ARGUMENTS);
        Py_RETURN_NONE;
    } catch (std::exception const& error) {
        PyErr_SetString(PyExc_RuntimeError, error.what());
    } catch (...) {
        PyErr_SetString(PyExc_RuntimeError, "unhandled error");
    }
    return nullptr;
}
"""
_TAIL = """
static void* pointers[] = {
POINTERS    nullptr};
static PyMethodDef functions[] = {
ROWS    {NULL, NULL, 0, NULL}};
static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "kernel", NULL, -1, functions};

PyMODINIT_FUNC PyInit_kernel(void) {
    const char* told = std::getenv("_TORCHINDUCTOR_PYOBJECT_TENSOR_DATA_PTR");
    char* end = nullptr;
    errno = 0;
    uintptr_t at = told ? std::strtoull(told, &end, 10) : 0;
    if (errno != 0 || end == told || at == 0) {
        PyErr_SetString(PyExc_RuntimeError, "_TORCHINDUCTOR_PYOBJECT_TENSOR_DATA_PTR must be set");
        return nullptr;
    }
    address = reinterpret_cast<decltype(address)>(at);
    PyObject* made = PyModule_Create(&module);
    for (int i = 0; made && pointers[i]; i++) {
        auto name = "kernel" + std::to_string(i) + "_at";
        if (PyModule_AddObject(made, name.c_str(), PyLong_FromVoidPtr(pointers[i])) < 0) return nullptr;
    }
#ifdef Py_GIL_DISABLED
    if (made) PyUnstable_Module_SetGIL(made, Py_MOD_GIL_NOT_USED);
#endif
    return made;
}
"""
