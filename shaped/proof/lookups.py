"""Attributes as they lie in dictionaries: found without running any code of the object's own."""

import sys
import types
from enum import Enum
from typing import Any

from torch import nn

from shaped.proof.contents import own_dictionary
from shaped.proof.instructions import UNKNOWN
from shaped.proof.log import of_class
from shaped.proof.reads import ATTRIBUTE, DESCRIBED, MISSING, PLAIN, Read, is_leaf, is_library, is_opaque

_SWITCHES = "torch.backends"
_NUMBERS = (float, int, bool, complex)  # `math.pi` may be bound anew like any other
Found = tuple[list[tuple[str, Any, Any, Any]], Any]


def looked_up(owner: Any, name: str) -> Found | None:
    """The reads of an attribute, without running code, and its value; None where code decides."""
    if isinstance(owner, types.ModuleType):
        held = vars(owner)
        if is_opaque(owner) and (name not in held or owner.__name__.startswith(_SWITCHES)):
            return _switch(owner, name) or (None if name not in held else ([], held[name]))
        if name not in held:
            return None if "__getattr__" in held else ([(PLAIN, held, name, MISSING)], UNKNOWN)
        value = held[name]
        kept = (
            not is_opaque(owner)
            or type(value) in _NUMBERS
            or (own_dictionary(value) is not None and not callable(value))
        )
        return [(PLAIN, held, name, value)] if kept else [], value
    if isinstance(owner, super):
        return _of_super(owner, name)
    kind = owner if isinstance(owner, type) else type(owner)
    if name == "__class__":
        return [], type(owner)
    if has_switches(owner):
        return _switch(owner, name)
    if _has_code(type(owner), "__getattribute__"):
        return None
    if isinstance(owner, Enum) and name in ("value", "name"):
        name = f"_{name}_"  # which these give
    above = next(((c, vars(c)[name]) for c in kind.__mro__ if name in vars(c)), None)
    if isinstance(owner, type) and name == "__dict__":
        return [*of_class(owner)], UNKNOWN
    if isinstance(owner, type):
        return _of_class(above, name, kind) or _absent(owner, name, kind, None)
    own = own_dictionary(owner)
    if name == "__dict__" and own is not None:
        return [(ATTRIBUTE, owner, "__dict__", own)], own
    if above is not None:
        setter = hasattr(type(above[1]), "__set__")
        if setter and isinstance(above[1], types.MemberDescriptorType):
            value = getattr(owner, name, MISSING)
            return [(ATTRIBUTE, owner, name, value)], UNKNOWN if value is MISSING else value
        if setter and _is_c(above[1]):
            return _switch(owner, name)
        if setter:
            return _described(above[1], name, kind)
    if own is not None and name in own:
        return [(PLAIN, own, name, own[name])], own[name]
    if above is None and own is None and not _has_code(kind, "__getattr__"):
        value = getattr(owner, name, MISSING)
        return [(ATTRIBUTE, owner, name, value)], UNKNOWN if value is MISSING else value
    if above is None:
        return _absent(owner, name, kind, own)
    found = _of_class(above, name, kind, owner)
    hides = found is not None and own is not None and (found[0] or name == "forward")
    if found is not None and hides:
        found[0].append((PLAIN, own, name, MISSING))  # one of its own would hide the class's
    return found


def function_of(owner: Any, name: str) -> Read | None:
    """A function of a library's module, as it lies there: another may take its place (`math.floor = f`)."""
    if not isinstance(owner, types.ModuleType) or not is_opaque(owner):
        return None
    owner = sys.modules.get(owner.__name__, owner)  # a trace has a `math` of its own
    value = vars(owner).get(name)
    if not callable(value) or isinstance(value, type):
        return None
    return Read(PLAIN, vars(owner), name, value, text=f"{owner.__name__}.{name}")


def has_switches(owner: Any) -> bool:
    """Whether it is a library's module, or stands for one: what it has are functions, constants and switches."""
    if isinstance(owner, types.ModuleType):
        return is_opaque(owner)
    return type(owner).__module__.startswith(_SWITCHES)


def _switch(owner: Any, name: str) -> Found | None:
    """What C, or torch's own code for its switches, gives for an attribute: it is read where it is a number."""
    value = getattr(owner, name, MISSING)
    return ([(ATTRIBUTE, owner, name, value)], value) if is_leaf(value) or type(value) is tuple else None


def _is_c(descriptor: Any) -> bool:
    """Whether C gives what a descriptor gives, and no code of the user's; a property calls that."""
    getter = next((vars(c)["__get__"] for c in type(descriptor).__mro__ if "__get__" in vars(c)), None)
    return isinstance(getter, types.WrapperDescriptorType) and not isinstance(descriptor, property)


def _of_class(above: tuple[type, Any] | None, name: str, kind: type, owner: Any = None) -> Found | None:
    """An attribute that a class or one above it has; another there, or one between them, would replace it."""
    if above is None:
        return None
    value = above[1]
    code = value.__func__ if isinstance(value, classmethod | staticmethod) else value
    if isinstance(code, types.FunctionType):
        reads = [] if is_library(code.__module__) else [(ATTRIBUTE, kind, name, getattr(kind, name, MISSING))]
        return reads, types.MethodType(code, owner) if owner is not None and code is value else code
    if code is not value:
        return [], code
    if isinstance(value, types.MethodDescriptorType | types.ClassMethodDescriptorType | types.BuiltinMethodType):
        try:
            return [], getattr(owner if owner is not None else kind, name)  # C's own: it runs no code of the user's
        except AttributeError:
            return None
    if hasattr(type(value), "__get__"):
        return _described(value, name, kind)
    return [(ATTRIBUTE, kind, name, value)], value


def _described(value: Any, name: str, kind: type) -> Found | None:
    """What a property gives is not known, but it is watched that it stays; so is what another descriptor holds."""
    if isinstance(value, property):
        return ([] if is_library(kind.__module__) else [(ATTRIBUTE, kind, name, getattr(kind, name))]), UNKNOWN
    own = own_dictionary(value)
    if own is None or is_library(type(value).__module__):
        return None
    return [(DESCRIBED, kind, name, value)], UNKNOWN


def _of_super(owner: Any, name: str) -> Found | None:
    """An attribute that a class above another has: `super().rate`."""
    mro = owner.__self_class__.__mro__
    above = next((c for c in mro[mro.index(owner.__thisclass__) + 1 :] if name in vars(c)), None)
    if above is None:
        return None
    bound = None if isinstance(owner.__self__, type) else owner.__self__
    return _of_class((above, vars(above)[name]), name, above, bound)


def _absent(owner: Any, name: str, kind: type, own: dict[str, Any] | None) -> Found | None:
    """An attribute that is not there, as far as no code decides: it may come."""
    if isinstance(owner, type):
        meta: type = type(owner)
        above = [vars(c)[name] for c in meta.__mro__ if name in vars(c)]
        if not above:
            return [(ATTRIBUTE, owner, name, MISSING)], UNKNOWN
        return None if hasattr(type(above[0]), "__get__") else ([(ATTRIBUTE, owner, name, above[0])], above[0])
    code = getattr(kind, "__getattr__", None)
    if own is None or code not in (None, nn.Module.__getattr__):
        return None
    if code is not None and any(name in own.get(held, ()) for held in ("_parameters", "_buffers", "_modules")):
        return None
    return [(PLAIN, own, name, MISSING), (ATTRIBUTE, kind, name, MISSING)], UNKNOWN


def _has_code(kind: type, *names: str) -> bool:
    """Whether Python decides what an attribute is; C does of a thread's own values."""
    return any(isinstance(vars(c).get(name), types.FunctionType) for c in kind.__mro__ for name in names)
