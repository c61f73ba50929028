"""What data keeps to itself: random generators in loaders, samplers, data sets and functions; and what tells it apart.

A resumed run has to put these generators back where they were, and to say where it is given other data.
"""

import copy
import functools
import inspect
import random
import sys
import types
import zlib
from collections import deque
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

_DEPTH, _MOST, _SAMPLE = 8, 5000, 2**20
_OURS = ("shaped.loop", "shaped.trainer", "shaped.state", "shaped.checkpoint", "shaped.optim", "shaped.workflow")
_PLAIN = (Tensor, torch.nn.Module, str, bytes, int, float, complex, bool, type, type(None), types.ModuleType)


def generators_of(data: Any) -> dict[str, Any]:
    """Every random generator of torch, Python or NumPy that data holds and that is not a global one, by where it is."""
    return {path: found for path, found in walk(data) if _is_generator(found)}


def generator_states_of(data: Any) -> dict[str, Any]:
    """Where each of them is now, as plain data."""
    return {path: _state(generator) for path, generator in generators_of(data).items()}


def fingerprints(data: Any) -> dict[str, str]:
    """What is another once a generator has drawn."""
    return {path: _fingerprint(generator) for path, generator in generators_of(data).items()}


def _fingerprint(generator: Any) -> str:
    if isinstance(generator, torch.Generator):
        return repr(generator.get_state().tolist())
    return repr(generator.getstate() if isinstance(generator, random.Random) else _state(generator))


def put_back(data: Any, states: Mapping[str, Any]) -> None:
    """Put generators back; those that the states do not name stay as they are."""
    for path, generator in generators_of(data).items():
        if path in states:
            _load(generator, states[path])


def unsavable(data: Any) -> str | None:
    """Why the random state of some data cannot be saved, and what to do; None where it can."""
    for _, found in walk(data):
        if isinstance(found, DataLoader) and found.num_workers and found.persistent_workers and not is_stateful(found):
            return (
                "the data is a DataLoader with persistent_workers=True, whose workers keep random state through all "
                "epochs that no checkpoint can hold; make it with persistent_workers=False, which seeds them anew in "
                "each epoch"
            )
        if isinstance(found, DataLoader) and is_stateful(found) and _draws_at_once(found.sampler):
            return (
                f"a StatefulDataLoader begins its sampler twice where a run goes on, and "
                f"{type(found.sampler).__name__} draws where it is begun: write its __iter__ with `yield`, give it "
                "state_dict() and load_state_dict(), or take torch's DataLoader, which needs neither"
            )
    return None


def _draws_at_once(sampler: Any) -> bool:
    """Whether a sampler of the user's own draws in its `__iter__`, and neither it nor its iterator has a state."""
    if f"{type(sampler).__module__}.".startswith(("torch.", "torchdata.")) or is_stateful(sampler):
        return False
    before = generator_states_of(sampler)
    if not before or inspect.isgeneratorfunction(getattr(type(sampler), "__iter__", None)):
        return False
    try:
        return not is_stateful(iter(copy.copy(sampler)))
    finally:
        put_back(sampler, before)


def is_stateful(data: Any) -> bool:
    """Whether data says itself where it is, as torchdata's StatefulDataLoader does."""
    methods = (getattr(data, name, None) for name in ("state_dict", "load_state_dict"))
    return all(callable(method) for method in methods) and not hasattr(data, "iterate")


def _is_generator(thing: Any) -> bool:
    if isinstance(thing, torch.Generator):
        return thing is not torch.default_generator
    if isinstance(thing, random.Random):
        return not isinstance(thing, random.SystemRandom) and thing is not random._inst  # type: ignore[attr-defined]
    numpy = sys.modules.get("numpy")
    if numpy is None:
        return False
    if isinstance(thing, numpy.random.RandomState):
        return thing is not numpy.random.mtrand._rand
    return isinstance(thing, numpy.random.Generator)


def walk(data: Any) -> Iterator[tuple[str, Any]]:
    """What data holds, breadth first, each thing once, with where it is."""
    queue, seen = deque([("data", data, 0)]), {id(data)}
    while queue:
        path, thing, depth = queue.popleft()
        yield path, thing
        if _is_generator(thing) or depth == _DEPTH:
            continue
        for name, inner in _inside(thing):
            if not _is_plain(inner) and id(inner) not in seen and len(seen) < _MOST:
                seen.add(id(inner))
                queue.append((f"{path}{name}", inner, depth + 1))


def _is_plain(thing: Any) -> bool:
    """A tensor, a number, a text, or a batch of them: the most of what lists hold."""
    if isinstance(thing, tuple) and len(thing) < 8:
        return all(isinstance(part, _PLAIN) for part in thing)
    return isinstance(thing, _PLAIN)


def _inside(thing: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(thing, dict):  # and no other mapping, which may read a disk
        yield from ((f"[{key!r}]", value) for key, value in islice(thing.items(), _MOST))
    elif isinstance(thing, list | tuple):
        yield from ((f"[{i}]", value) for i, value in enumerate(islice(thing, _MOST)))
    elif isinstance(thing, types.FunctionType):
        yield from _of_function(thing)
    elif isinstance(thing, types.MethodType):
        yield from ((".__self__", thing.__self__), ("", thing.__func__))
    elif isinstance(thing, functools.partial):
        yield from (("", thing.func), (".args", thing.args), (".keywords", thing.keywords))
    elif isinstance(thing, types.GeneratorType):
        if thing.gi_frame is not None:
            yield from ((f".{name}", value) for name, value in thing.gi_frame.f_locals.items())
    elif not isinstance(thing, types.BuiltinFunctionType) and not type(thing).__module__.startswith(_OURS):
        slots = [name for kind in type(thing).__mro__ for name in getattr(kind, "__slots__", ()) if name != "__dict__"]
        yield from ((f".{name}", getattr(thing, name, None)) for name in slots if isinstance(name, str))
        own = getattr(thing, "__dict__", {})
        yield from ((f".{name}", value) for name, value in list(own.items()) if name != "_iterator")
        for name in ("__iter__", "__getitem__", "iterate", "__call__"):  # they may name generators of their module
            method = getattr(type(thing), name, None)
            if isinstance(method, types.FunctionType):
                yield from ((f".{name}{at}", found) for at, found in _of_function(method) if _is_generator(found))


def _of_function(function: types.FunctionType) -> Iterator[tuple[str, Any]]:
    """What a function refers to: its closure and defaults, and generators among the globals that it names."""
    names = function.__code__.co_freevars
    for name, cell in zip(names, function.__closure__ or (), strict=True):
        try:
            yield f".{name}", cell.cell_contents
        except ValueError:  # not bound yet
            continue
    yield ".defaults", (*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values())
    for code in (function.__code__, *filter(inspect.iscode, function.__code__.co_consts)):
        for name in code.co_names:
            if _is_generator(found := function.__globals__.get(name)):
                yield f".{name}", found


def _state(generator: Any) -> Any:
    if isinstance(generator, torch.Generator):
        return {"torch": generator.get_state()}
    if isinstance(generator, random.Random):
        version, words, gauss = generator.getstate()
        return {"python": [version, torch.tensor(words, dtype=torch.int64), gauss]}
    if hasattr(generator, "bit_generator"):
        return {"numpy": _plain(generator.bit_generator.state)}
    return {"numpy": _plain(generator.get_state(legacy=False))}


def _plain(value: Any) -> Any:
    """NumPy's arrays and numbers as lists and Python's."""
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    return value.tolist() if hasattr(value, "tolist") else value


def _load(generator: Any, state: Mapping[str, Any]) -> None:
    if isinstance(generator, torch.Generator):
        generator.set_state(state["torch"])
    elif isinstance(generator, random.Random):
        version, words, gauss = state["python"]
        generator.setstate((version, tuple(words.tolist()), gauss))
    elif hasattr(generator, "bit_generator"):
        generator.bit_generator.state = _arrays(state["numpy"])
    else:
        generator.set_state(_arrays(state["numpy"]))


def _arrays(value: Any) -> Any:
    import numpy

    if isinstance(value, dict):
        return {key: _arrays(inner) for key, inner in value.items()}
    return numpy.asarray(value, dtype=numpy.uint64) if isinstance(value, list) else value


# -- what tells data apart ---------------------------------------------------------------------------------------------


def facts(data: Any) -> dict[str, Any]:
    """What can be said of data without going over it: sizes, seeds, and a checksum of tensors in memory."""
    inner = getattr(data, "data", None)
    if type(data).__name__ == "prefetch" and inner is not None:
        return facts(inner)
    about: dict[str, Any] = {"batches": _length(data)}
    for name in ("batch_size", "seed", "shuffle", "drop_last"):
        value = getattr(data, name, None)
        if isinstance(value, int | str):
            about[name] = value
    source = data.dataset if isinstance(data, DataLoader) else data
    if source is not data:
        about |= {
            "data set": type(source).__name__,
            "examples": _length(source),
            "sampler": type(data.sampler).__name__,
        }
    tensors = getattr(source, "tensors", source if isinstance(source, list | tuple) else ())
    found = [t for item in tensors for t in (item if isinstance(item, tuple | list) else (item,))][:256]
    found = [t for t in found if isinstance(t, Tensor) and t.layout is torch.strided and not t.is_meta]
    if found:
        about["values"] = checksum(found)
    for path, generator in generators_of(data).items():
        if isinstance(generator, torch.Generator):
            about[f"seed of {path}"] = generator.initial_seed()
    return about


def _length(data: Any) -> int | None:
    try:
        return len(data)
    except (TypeError, AttributeError, NotImplementedError):
        return None


def checksum(tensors: Any) -> int:
    """A CRC-32 of shapes, dtypes and values; of large ones, of their two ends."""
    found = 0
    for t in tensors:
        found = zlib.crc32(f"{t.dtype} {tuple(t.shape)}".encode(), found)
        flat = t.detach().reshape(-1)
        most = max(1, _SAMPLE // max(1, flat.element_size()))
        for part in (flat,) if flat.numel() <= 2 * most else (flat[:most], flat[-most:]):
            plain = part.resolve_conj().resolve_neg().cpu().contiguous()
            found = zlib.crc32(plain.view(torch.uint8).numpy(), found) if plain.numel() else found
    return found


def differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """Facts that are not the same; one that only one of them has says nothing: a list may hold what a stream gave."""
    keys = [key for key in there if key in here and None not in (there[key], here[key]) and there[key] != here[key]]
    return [
        "other values" if key == "values" else f"{key} was {there.get(key)!r}, and is {here.get(key)!r}" for key in keys
    ]


def said_to_differ(what: list[str]) -> str:
    """The words of a warning."""
    return f"the run goes on with other data than it was saved with: {'; '.join(what)}"
