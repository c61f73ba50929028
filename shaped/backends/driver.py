"""The driver of a step in C++: one call for kernels and products that stand in a row in its generated text.

In Python each of them costs more than a small kernel itself, and so does each buffer. Here a segment takes the
addresses of its tensors, lets other threads have the interpreter, and calls kernels and products one after another:
small products that are written here too (microkernels.py), and others by torch's C interface, which is the same in all
versions. Its own small buffers lie in one piece of memory, at places that are known from when each is used; large ones
are made and freed around their use. A buffer that other lines use as well is there for all of its row. The piece is
taken by one call at a time: a call in another thread, or within this one, makes another.
"""

import ctypes
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

from shaped.backends import microkernels
from shaped.backends.calls import PRODUCTS, Launch, Segment, View
from shaped.backends.microkernels import small

SMALL, PIECE = 2**17, 2**20  # bytes: of a buffer that shares the piece at most, and of the piece
_ALIGNED = 64  # bytes, as torch's own allocator has it; the results of MKL may hang on it
_DTYPES = {torch.float16: 5, torch.float32: 6, torch.float64: 7, torch.bfloat16: 15}  # torch's numbers for them
_MAKE, _FREE = "aoti_torch_create_tensor_from_blob", "aoti_torch_delete_tensor_object"


@dataclass(frozen=True)
class Driver:
    """What takes a step.

    Attributes:
        source: Python text of the function `driven`, of the list of arguments.
        drives: The functions `drive0`, `drive1`, ... that it calls.
        torchs: Names of torch's functions that they call.
        others: Kernels of other libraries that they call.
        run: The function.
    """

    source: str
    drives: Sequence[Callable[..., None]]
    torchs: Sequence[str]
    others: Sequence[Any]
    run: Callable[[list[Any]], Any]


@cache
def _torch() -> ctypes.CDLL:
    name = {"darwin": "libtorch_cpu.dylib", "win32": "torch_cpu.dll"}.get(sys.platform, "libtorch_cpu.so")
    return ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / name))


def addresses(names: Sequence[str]) -> list[int]:
    """Where functions of torch are.

    Raises:
        OSError, AttributeError: Torch's library is elsewhere, or has none of this name.
    """
    return [ctypes.cast(getattr(_torch(), name), ctypes.c_void_p).value or 0 for name in names]


def address_of(kernel: Any) -> int:
    """Where a kernel of a library is."""
    return int(getattr(kernel.__self__, f"{kernel.__name__}_at"))


@cache
def products() -> tuple[str, ...]:
    """The products that this torch has as functions of its C interface."""

    def has(name: str) -> bool:
        try:
            return all(addresses([_MAKE, _FREE, _function(name)]))
        except (OSError, AttributeError):
            return False

    return tuple(name for name in PRODUCTS if has(name))


def _function(product: str) -> str:
    return f"aoti_torch_cpu_{product}_out"


def torchs(segments: Sequence[Segment]) -> list[str]:
    """The functions of torch that segments call, in order."""
    used = {call.name for segment in segments for call in segment.calls if small(call) is None} & {*PRODUCTS}
    return [_MAKE, _FREE, *(_function(name) for name in PRODUCTS if name in used)] if used else []


# -- C++ ---------------------------------------------------------------------------------------------------------------


def written(
    segments: Sequence[Segment], kernels: Mapping[str, tuple[str, Sequence[str]]], others: Sequence[str]
) -> str:
    """The C++ of segments: `drive0`, ... and, where they call what is not in this file, `link`.

    Args:
        segments: In order.
        kernels: By the names in the segments: how C++ calls it, and what it takes.
        others: Those of other libraries, in the order in which `link` is given them.
    """
    needed = torchs(segments)
    declared = [f"static void (*{kernels[o][0]})({', '.join(kernels[o][1])});\n" for o in others]
    places = [*(_SHORT[name] for name in needed), *(kernels[name][0] for name in others)]
    link = "".join(f"    put({place}, given[{i}]);\n" for i, place in enumerate(places))
    ours = any(small(call) for segment in segments for call in segment.calls)
    parts = [microkernels.CODE if ours else "", _HEAD, _TORCH if needed else "", *declared]
    parts += [_written(number, segment, kernels) for number, segment in enumerate(segments)]
    parts += [_LINK.replace("COUNT", str(len(places))).replace("PUT", link)] if places else []
    return "".join([*parts, "}\n"])


def functions(segments: Sequence[Segment], others: Sequence[str]) -> list[str]:
    """The names of the functions in what `written` gives."""
    linked = ["link"] if torchs(segments) or others else []
    return [*(f"drive{i}" for i in range(len(segments))), *linked]


def _written(number: int, segment: Segment, kernels: Mapping[str, tuple[str, Sequence[str]]]) -> str:
    uses: dict[str, list[int]] = {}
    own = dict(segment.own)
    for i, call in enumerate(segment.calls):
        for view in call.views:
            if view.buffer in own:
                uses.setdefault(view.buffer, [i, i])[1] = i
        if product := small(call):
            uses[f"room{i}"], own[f"room{i}"] = [i, i], product.room
    placed, length = placement({buffer: (own[buffer], first, last) for buffer, (first, last) in uses.items()})
    alone = [buffer for buffer in uses if buffer not in placed]
    seats: dict[View, int] = {}

    def address(view: View) -> str:
        if view.buffer in segment.tensors:
            place, at = segment.tensors[view.buffer]
            return f"at[{place}] + {view.at - at}"
        if view.buffer in placed:
            return f"piece + {placed[view.buffer] + view.at}"
        return f"{view.buffer}.get() + {view.at}"

    def tensor(view: View) -> str:
        seat, kind = seats.setdefault(view, len(seats)), view.dtype
        assert kind is not None
        sizes, strides = (", ".join(map(str, numbers)) for numbers in (view.sizes, view.strides))
        return f"tensor(seats[{seat}], {address(view)}, {len(view.sizes)}, {{{sizes}}}, {{{strides}}}, {_DTYPES[kind]})"

    lines = []
    for i, call in enumerate(segment.calls):
        for buffer in alone:
            if uses[buffer][0] == i:
                lines.append(f"Buffer {buffer}(buffer({max(own[buffer], 1)}));")
        if product := small(call):
            lines.append(microkernels.called(product, address, address(View(f"room{i}"))))
        else:
            lines.append(_called(call, kernels, address, tensor))
        lines += [f"{buffer}.reset();" for buffer in alone if uses[buffer][1] == i]
    body = "".join(f"        {line}\n" for line in lines)
    values = {"NUMBER": number, "GIVEN": len(segment.given), "BYTES": length, "SEATS": max(len(seats), 1), "BODY": body}
    text = _DRIVE
    for name, value in values.items():
        text = text.replace(name, str(value))
    return text


def _called(
    call: Launch,
    kernels: Mapping[str, tuple[str, Sequence[str]]],
    address: Callable[[View], str],
    tensor: Callable[[View], str],
) -> str:
    if call.name in kernels:
        function, takes = kernels[call.name]
        given = [f"({taken})({address(view)})" for taken, view in zip(takes, call.views, strict=True)]
        return f"{function}({', '.join(given)});"
    given = [*map(tensor, call.views), *map(repr, call.numbers)]
    return f'succeeded({call.name}({", ".join(given)}), "{call.name}");'


def placement(buffers: Mapping[str, tuple[int, int, int]]) -> tuple[dict[str, int], int]:
    """Where small buffers lie in one piece, and its length: two that are used at one time lie apart.

    Args:
        buffers: Bytes of each, its first and its last use.

    Returns:
        Offsets, in which buffers that are large or find no place are missing; and bytes.
    """
    taken: list[tuple[int, int, int, int]] = []  # from, to, first, last
    placed: dict[str, int] = {}
    for name, (size, first, last) in sorted(buffers.items(), key=lambda item: -item[1][0]):
        length, at = -(-max(size, 1) // _ALIGNED) * _ALIGNED, 0
        for start, end, begins, ends in sorted(taken):
            if begins <= last and first <= ends and start < at + length:
                at = max(at, end)
        if size <= SMALL and at + length <= PIECE:
            placed[name] = at
            taken.append((at, at + length, first, last))
    return placed, max((end for _, end, _, _ in taken), default=0)


_SHORT = {_MAKE: "from_blob", _FREE: "end_tensor", **{_function(name): name for name in PRODUCTS}}
_HEAD = """
#include <atomic>
#include <initializer_list>
#include <memory>
#include <new>
#include <string>

namespace driver {
static char* bytes(size_t count) {
    try {
        return static_cast<char*>(::operator new(count, std::align_val_t(ALIGNED)));
    } catch (std::bad_alloc const&) {
        throw std::runtime_error("no memory for a buffer of " + std::to_string(count) + " bytes");
    }
}
struct Free {
    void operator()(char* at) const { ::operator delete(at, std::align_val_t(ALIGNED)); }
};
using Buffer = std::unique_ptr<char, Free>;
static Buffer buffer(size_t count) { return Buffer(bytes(count)); }

using Tensor = void*;
struct Seat { void* at; Tensor tensor; };  // a tensor over memory that a product was last given there
static int32_t (*end_tensor)(Tensor);

template <size_t BYTES, size_t SEATS> struct Piece {
    Buffer memory = buffer(BYTES ? BYTES : 1);
    Seat seats[SEATS] = {};
    ~Piece() {
        for (auto& seat : seats) if (seat.tensor) end_tensor(seat.tensor);
    }
};
template <typename P> struct Lent {  // to one call at a time
    std::atomic<P*>& free;
    std::unique_ptr<P> mine;
    explicit Lent(std::atomic<P*>& of) : free(of), mine(of.exchange(nullptr)) { if (!mine) mine.reset(new P); }
    ~Lent() { delete free.exchange(mine.release()); }
};
struct Unlocked {  // other threads may run Python
    PyThreadState* state = PyEval_SaveThread();
    ~Unlocked() { PyEval_RestoreThread(state); }
};
template <typename F> static void put(F& function, PyObject* given) {
    function = reinterpret_cast<F>(PyLong_AsVoidPtr(given));
}
""".replace("ALIGNED", str(_ALIGNED))
_TORCH = """
using Sizes = std::initializer_list<int64_t>;
static int32_t (*from_blob)(
    void*, int64_t, const int64_t*, const int64_t*, int64_t, int32_t, int32_t, int32_t, Tensor*);
static int32_t (*mm)(Tensor, Tensor, Tensor);
static int32_t (*bmm)(Tensor, Tensor, Tensor);
static int32_t (*addmm)(Tensor, Tensor, Tensor, Tensor, double, double);
static int32_t (*baddbmm)(Tensor, Tensor, Tensor, Tensor, double, double);

static void succeeded(int32_t code, const char* what) {
    if (code) throw std::runtime_error(std::string("torch's ") + what + " failed; what it said is on stderr");
}
static Tensor tensor(Seat& seat, void* at, int64_t axes, Sizes sizes, Sizes strides, int32_t dtype) {
    if (seat.at != at || !seat.tensor) {
        if (seat.tensor) end_tensor(seat.tensor);
        seat = {at, nullptr};
        succeeded(from_blob(at, axes, sizes.begin(), strides.begin(), 0, dtype, 0, -1, &seat.tensor), "from_blob");
    }
    return seat.tensor;
}
"""
_DRIVE = """
static PyObject* driveNUMBER(PyObject*, PyObject* const* given, Py_ssize_t count) {
    static std::atomic<Piece<BYTES, SEATS>*> free{nullptr};
    try {
        if (count != GIVEN) throw std::runtime_error("requires GIVEN tensors");
        char* at[GIVEN + 1];
        for (Py_ssize_t i = 0; i < GIVEN; i++) at[i] = static_cast<char*>(address(given[i]));
        Unlocked unlocked;
        Lent<Piece<BYTES, SEATS>> lent(free);
        char* piece = lent.mine->memory.get();
        Seat* seats = lent.mine->seats;
        (void)piece, (void)seats;
BODY    } catch (std::exception const& error) {
        PyErr_SetString(PyExc_RuntimeError, error.what());
        return nullptr;
    } catch (...) {
        PyErr_SetString(PyExc_RuntimeError, "unhandled error");
        return nullptr;
    }
    Py_RETURN_NONE;
}
"""
_LINK = """
static PyObject* link(PyObject*, PyObject* const* given, Py_ssize_t count) {
    if (count != COUNT) {
        PyErr_SetString(PyExc_RuntimeError, "requires COUNT addresses");
        return nullptr;
    }
PUT    if (PyErr_Occurred()) return nullptr;
    Py_RETURN_NONE;
}
"""
