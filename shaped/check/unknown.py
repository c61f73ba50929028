"""A value that nothing tells: it can be passed on, and whoever reads it ends the proof."""

import sys
from collections.abc import Callable
from typing import Any, NoReturn

from shaped.errors import Goal, Unprovable
from shaped.proof.source import is_users, place_of_caller


def undecided(title: str, hint: str = "") -> Unprovable:
    """At the user's line that is under way."""
    place = place_of_caller()
    error = Unprovable(title, place.source() if place is not None else None, Goal(hint=hint))
    error.untold = True
    return error


class Unknown:
    """Stands for an argument; a program that does not look at it is proved for any."""

    __slots__ = ("_path", "_why")

    def __init__(self, path: str, why: str) -> None:
        object.__setattr__(self, "_path", path)
        object.__setattr__(self, "_why", why)

    @property  # type: ignore[misc]  # isinstance asks for it
    def __class__(self) -> Any:
        """What `isinstance` asks for: torch's containers do for whatever they hold, and no program is decided by it."""
        return self.read() if is_users(sys._getframe(1)) else Unknown

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> NoReturn:
        for value in (*args, *(kwargs or {}).values()):
            if type(value) is Unknown:
                value.read()
        raise undecided("a value that nothing tells is given to torch here.")

    def __getattr__(self, name: str) -> NoReturn:
        if not is_users(sys._getframe(1)):
            raise AttributeError(name)  # a container that looks at what it holds
        self.read()

    def read(self) -> NoReturn:
        """End the proof, at the user's line."""
        name = str(self._path).rpartition(".")[2].partition("[")[0]
        raise undecided(f"`{self._path}` is read here, and {self._why}.",
                        f"give it a default, or say what it is: --make '{name}=...'")  # fmt: skip


def _reading() -> Callable[..., Any]:
    def read(self: Unknown, *args: Any) -> NoReturn:
        self.read()

    return read


_READ = """call bool iter next len getitem setitem contains eq ne lt le gt ge hash add radd sub rsub mul rmul
matmul rmatmul truediv rtruediv floordiv rfloordiv mod rmod pow rpow and or neg abs index int float str repr format
enter exit setattr"""

for _name in _READ.split():
    setattr(Unknown, f"__{_name}__", _reading())


class Keyed(dict[Any, Any]):
    """A mapping with keys of our choice."""

    def __missing__(self, key: Any) -> NoReturn:
        raise undecided(f"the key {key!r} is read here, and the annotation names no keys.",
                        "write a TypedDict or a dataclass")  # fmt: skip


def blank(kind: type, attributes: dict[str, Any]) -> Any:
    """An instance that no constructor made, with these attributes; to read another ends the proof."""

    def missing(self: Any, name: str) -> Any:
        for base in kind.__mro__:
            if "__getattr__" in vars(base):
                try:
                    return vars(base)["__getattr__"](self, name)
                except Exception:
                    break
        if name.startswith("__") or not is_users(sys._getframe(1)):  # torch asks whether there is one
            raise AttributeError(name)
        raise undecided(f"`{kind.__name__}.{name}` is read here, and its constructor could not be run.",
                        f"say how one is made: --make '{kind.__name__}(...)'")  # fmt: skip

    made: Any = _concrete(kind, {"__getattr__": missing})
    instance = made.__new__(made)
    for base in kind.__mro__:  # torch's modules hold their parts in attributes of their own
        if base.__module__.startswith("torch.nn.modules.module"):
            vars(base)["__init__"](instance)
    for name, value in attributes.items():
        object.__setattr__(instance, name, value)
    return instance


def fresh(kind: Any) -> Any:
    """An instance as its constructor finds it."""
    made = _concrete(kind, {}) if getattr(kind, "__abstractmethods__", ()) else kind
    return made.__new__(made)


def _concrete(kind: type, body: dict[str, Any]) -> Any:
    """A class of which instances can be made."""
    abstract = dict.fromkeys(getattr(kind, "__abstractmethods__", ()))
    return type(kind)(kind.__name__, (kind,), {**abstract, "__module__": kind.__module__, **body})
