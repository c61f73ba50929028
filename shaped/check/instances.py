"""Instances of classes, as their constructors make them of invented arguments."""

import ast
import builtins
import dataclasses
import importlib
import inspect
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from types import CodeType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from shaped.check.choices import (
    Inventor,
    ValueChoice,
    combined,
    constant,
    has_shape,
    is_unknown,
    is_whole,
    together,
    unknown,
    whole,
    without_none,
)
from shaped.check.unknown import blank, fresh
from shaped.errors import ShapedError, SignatureError, first_line
from shaped.shapes import annotated_part

_DEEPEST = 4  # classes within classes
_FILLS = {"uniform_", "normal_", "trunc_normal_", "constant_", "zeros_", "ones_"}
_ALTERNATIVES = 4  # of one class
_PLAIN = (bool, float, str)


@dataclass
class Factories:
    """How instances are made where a constructor's arguments cannot be invented: `Net(Config(dim=8))`.

    `name=...` says what an argument of that name is, whatever its annotation; `function.name=...` an argument of that
    function or constructor alone; `Net.name=...` also an attribute, where Net's constructor cannot be run.

    Names in an expression that the file does not define are dimensions; a module that is named before a dot is
    imported: `model=my.models.Net(dim)`. `model=Net(dim := 16)` makes one for all runs, and takes dim at 16 with it;
    factories after it may use it by name.
    """

    expressions: Sequence[str] = ()
    names: Mapping[str, Any] = field(default_factory=dict)  # of the file
    used: dict[str, None] = field(default_factory=dict)  # what was asked for, until it is cleared

    def __post_init__(self) -> None:
        self._codes: dict[str, tuple[CodeType, tuple[str, ...], str]] = {}
        self._arguments: dict[str, None] = {}
        self._modules: dict[str, ModuleType] = {}
        self._values: dict[str, tuple[Any, tuple[tuple[str, int], ...]]] = {}
        for text in self.expressions:
            key, value = _parted(text)
            try:
                node = ast.parse(value, mode="eval")
                code = compile(node, "<factory>", "eval")
            except SyntaxError as error:
                raise ShapedError(f"a factory is an expression such as Net(Config(dim=8)), not {text!r}") from error
            every = [n for n in ast.walk(node) if isinstance(n, ast.Name)]
            sized = {n.id for n in every if isinstance(n.ctx, ast.Store)}
            sized |= {n.arg for n in ast.walk(node) if isinstance(n, ast.arg)}  # of a lambda
            names = tuple(dict.fromkeys(n.id for n in every if n.id not in sized))
            self._arguments |= {key: None} if key else {}
            self._modules |= _imported(node, self.names)
            self._codes[made_by(text)] = code, names, value

    def are_about(self, function: str, names: Iterable[str]) -> bool:
        """Whether one says what an argument of a function is."""
        return any(name in self._arguments or f"{function}.{name}" in self._arguments for name in names)

    def made(self, kind: type, path: str, ints: list[str]) -> list[ValueChoice]:
        """The choice that a factory gives for a class; none where there is no factory."""
        return self._evaluating(kind.__name__, path, ints) if kind.__name__ in self._codes else []

    def given(self, name: str, owner: str, path: str, ints: list[str]) -> list[ValueChoice]:
        """The choice that a factory gives for an argument of `owner` by its name; none where there is no factory."""
        keys = [key for key in (f"{owner}.{name}", name) if key in self._arguments]
        return self._evaluating(keys[0], path, ints) if keys else []

    def attributes(self, kind: type, path: str, ints: list[str]) -> dict[str, ValueChoice]:
        """What factories say of the attributes of a class or of one of its bases."""
        found: dict[str, ValueChoice] = {}
        for base in kind.__mro__:
            names = [key.removeprefix(f"{base.__qualname__}.") for key in self._arguments]
            for name in names:
                if name.isidentifier() and f"{base.__qualname__}.{name}" in self._arguments and name not in found:
                    found[name] = self._evaluating(f"{base.__qualname__}.{name}", f"{path}.{name}", ints)[0]
        return found

    def _evaluating(self, key: str, path: str, ints: list[str]) -> list[ValueChoice]:
        code, names, text = self._codes[key]
        self.used[key] = None
        known = self._known(key)
        free = [name for name in names if name not in known and not hasattr(builtins, name)]
        owners = [n.value.id for n in ast.walk(ast.parse(text, mode="eval"))
                  if isinstance(n, ast.Attribute) and isinstance(n.value, ast.Name)]  # fmt: skip
        for name in free:
            if name in owners:
                raise ShapedError(f"the factory {text} names `{name}`, which is no module and nothing of this file")
        if not free:  # one for all runs
            return [self._built(key, path)]
        ints += [name for name in free if name not in ints]
        make = partial(_evaluated, code, known, tuple(free))
        return [together(path, text, free, [whole(name, name) for name in free], make)]

    def _known(self, key: str) -> dict[str, Any]:
        """What an expression may name: what its file does, modules, and what the factories before it make once."""
        found = {**self._modules, **self.names}
        for before in self._codes:
            if before == key:
                break
            if before in self._arguments and before in self._codes[key][1]:
                self.used[before] = None
                found |= {before: self._built(before, before).value.build(())} if self._is_one(before) else {}
        return found

    def _is_one(self, key: str) -> bool:
        """Whether an expression has no free dimensions."""
        known = self._known(key)
        return all(name in known or hasattr(builtins, name) for name in self._codes[key][1])

    def _built(self, key: str, path: str) -> ValueChoice:
        """What an expression without free dimensions gives, and the sizes that it names: `Net(width := 12)`."""
        code, _, text = self._codes[key]
        if key not in self._values:
            named: dict[str, Any] = {}
            try:
                value = eval(code, self._known(key), named)
            except Exception as error:
                raise ShapedError(f"the factory {text} fails: {type(error).__name__}: {first_line(error)}") from error
            sizes = tuple((name, size) for name, size in named.items() if type(size) is int)
            self._values[key] = value, sizes
        value, sizes = self._values[key]
        choice = constant(path, value)
        return replace(choice, value=replace(choice.value, kind=text), given=True, sizes=sizes)


def _parted(text: str) -> tuple[str, str]:
    """What a factory is for, where it says so, and its expression."""
    key, _, value = text.partition("=")
    named = all(part.isidentifier() for part in key.strip().split("."))
    return (key.strip(), value.strip()) if named else ("", text.strip())


def made_by(text: str) -> str:
    """The class, the argument or the attribute that a factory makes; nothing where it is no expression."""
    key, value = _parted(text)
    try:
        body = ast.parse(value, mode="eval").body
    except SyntaxError:
        return key
    named = body.func if isinstance(body, ast.Call) else body
    return key or (named.attr if isinstance(named, ast.Attribute) else getattr(named, "id", ""))


def _imported(node: ast.AST, names: Mapping[str, Any]) -> dict[str, ModuleType]:
    """The modules that an expression names before a dot, by the first of their names; those of the file are its own."""
    found: dict[str, ModuleType] = {}
    for one in ast.walk(node):
        parts = ast.unparse(one).split(".") if isinstance(one, ast.Attribute) else []
        if not all(part.isidentifier() for part in parts) or not parts or parts[0] in names:
            continue
        for end in range(1, len(parts) + 1):
            name = ".".join(parts[:end])
            try:
                module = importlib.import_module(name)
            except ModuleNotFoundError as error:
                if error.name != name and not name.startswith(f"{error.name}."):
                    raise ShapedError(f"a factory names {name}, which cannot be imported: {error}") from error
                break
            except Exception as error:
                raise ShapedError(f"a factory names {name}, which cannot be imported: {error}") from error
            found.setdefault(parts[0], module)
    return found


def _evaluated(code: CodeType, names: Mapping[str, Any], free: Sequence[str], parts: Sequence[Any]) -> Any:
    with _Filling():
        return eval(code, {**names, **dict(zip(free, parts, strict=True))})


@dataclass
class Instances:
    """Makes the choices for a class."""

    factories: Factories

    def __call__(self, inventor: Inventor, kind: type, path: str) -> list[ValueChoice]:
        """An instance by its factory or its constructor; unknown where neither can be."""
        made = self.factories.made(kind, path, inventor.ints)
        if made:
            return made
        if kind in inventor.making or len(inventor.making) >= _DEEPEST or _is_foreign(kind):
            return [unknown(path, f"nothing makes its {kind.__name__}")]
        inventor.making.append(kind)
        try:
            return self.constructed(inventor, kind, path)
        finally:
            inventor.making.pop()

    def constructed(self, inventor: Inventor, kind: type, path: str) -> list[ValueChoice]:
        """An instance of each combination of a constructor's arguments."""
        if inspect.isabstract(kind) or getattr(kind, "_is_protocol", False):
            return [unknown(path, f"{kind.__name__} is abstract")]
        if typing.is_typeddict(kind) or hasattr(kind, "_fields"):
            hints = hints_of(kind)
            options = {name: inventor.of(hint, f"{path}.{name}") for name, hint in hints.items()}
            make: Callable[..., Any] = kind
        else:
            try:
                parameters = list(inspect.signature(kind).parameters.values())
            except (TypeError, ValueError):
                return [unknown(path, f"nothing makes its {kind.__name__}")]
            hints = (
                hints_of(kind) if dataclasses.is_dataclass(kind) and _generated(kind) else hints_of(constructor(kind))
            )
            parameters = [_with_factory(kind, parameter) for parameter in parameters]
            options = inventor.arguments(parameters, hints, f"{path}.")
            make = kind
        chosen, left = combined(list(options.values()), _ALTERNATIVES)
        if left:
            inventor.left_out.append(f"{left} other ways to make {path}")
        return [
            together(path, _spelled(kind, parts), tuple(options), parts, partial(_made, make, tuple(options)))
            for parts in chosen
        ]

    def fresh(self, kind: type, path: str) -> ValueChoice:
        """An instance as its constructor finds it."""
        return together(path, f"a new {kind.__name__}", (), (), lambda parts: fresh(kind))

    def blank(self, inventor: Inventor, kind: type, path: str, whole: bool = False) -> ValueChoice:
        """An instance with what the class's own annotations tell of tensors and sizes, and nothing else.

        Args:
            whole: Take something for each other annotated attribute, too.
        """
        found: dict[str, ValueChoice] = {}
        foreign = {name for base in kind.__mro__ if _is_foreign(base) for name in inspect.get_annotations(base)}
        for name, hint in hints_of(kind).items():
            given = kind.__dict__.get(name)
            derived = isinstance(getattr(kind, name, None), property)
            if derived or name in foreign:  # a module's tables of parameters and hooks, which torch keeps
                continue
            if has_shape(hint) or hint is int:
                options = [choice for choice in inventor.of(hint, f"{path}.{name}") if not is_unknown(choice)]
                found.update({name: options[0]} if options else {})
            elif name in vars(kind) and not callable(given):
                found[name] = constant(name, given)
            elif whole:
                found.update(self._attribute(inventor, hint, f"{path}.{name}", name))
        told = self.factories.attributes(kind, path, inventor.ints)
        found |= told
        make, said = partial(_blank, kind, tuple(found)), f" with {', '.join(told)} as said" if told else ""
        return together(path, f"any {kind.__name__}{said}", tuple(found), list(found.values()), make)

    def _attribute(self, inventor: Inventor, hint: Any, path: str, name: str) -> dict[str, ValueChoice]:
        """The first thing that an annotated attribute may be; absent where that is allowed."""
        bare, optional = without_none(hint)
        if optional and bare not in _PLAIN:
            return {name: ValueChoice(constant(path, None).value, (f"{path} absent",), tried=True)}
        try:
            options = [choice for choice in inventor.of(hint, path) if not is_unknown(choice)]
        except (RecursionError, SignatureError):
            return {}
        return {name: replace(options[0], tried=True)} if options else {}


def constructor(kind: Any) -> Any:
    """A class's `__init__`, its own or inherited."""
    return kind.__init__


def _generated(kind: type) -> bool:
    """Whether a dataclass's constructor is the one that it was given."""
    code = getattr(inspect.unwrap(constructor(kind)), "__code__", None)
    return code is None or code.co_filename.startswith("<")


def _with_factory(kind: type, parameter: inspect.Parameter) -> inspect.Parameter:
    """A dataclass's `default_factory` as the default that it makes."""
    fields = {f.name: f for f in dataclasses.fields(kind)} if dataclasses.is_dataclass(kind) else {}
    one = fields.get(parameter.name)
    if one is not None and one.default_factory is not dataclasses.MISSING:
        return parameter.replace(default=one.default_factory())
    return parameter


def _is_foreign(kind: type) -> bool:
    """Whether it is a class of torch, numpy or Python, of which nothing is invented."""
    return kind is nn.Module or kind.__module__.split(".")[0] in ("torch", "numpy", "builtins", "typing", "pathlib")


def _spelled(kind: type, parts: Sequence[ValueChoice]) -> str:
    """`Net(d_in, d_out)`: the sizes that it was made with."""
    sizes = [part.value.kind for part in parts if is_whole(part)]
    return f"{kind.__name__}({', '.join(sizes)})" if sizes else kind.__name__


def _made(make: Callable[..., Any], names: Sequence[str], parts: Sequence[Any]) -> Any:
    with _Filling():
        return make(**dict(zip(names, parts, strict=True)))


def _blank(kind: type, names: Sequence[str], parts: Sequence[Any]) -> Any:
    instance = blank(kind, dict(zip(names, parts, strict=True)))
    if dataclasses.is_dataclass(kind) and hasattr(kind, "__post_init__"):
        try:
            instance.__post_init__()  # which derives attributes from fields, where these are enough
        except Exception:
            return blank(kind, dict(zip(names, parts, strict=True)))
    return instance


class _Filling(TorchFunctionMode):
    """While a module is made of symbolic sizes, nothing is drawn: fans and bounds are numbers of these sizes."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        fills = getattr(func, "__module__", "") == "torch.nn.init" or getattr(func, "__name__", "") in _FILLS
        tensor = next(iter([*args, *(kwargs or {}).values()]), None) if fills else None
        if isinstance(tensor, Tensor) and any(isinstance(size, torch.SymInt) for size in tensor.shape):
            return tensor
        return func(*args, **(kwargs or {}))


def hints_of(owner: Any) -> dict[str, Any]:
    """Annotations as objects; one that does not resolve is kept as its text, and makes an unknown value."""
    try:
        return typing.get_type_hints(owner, include_extras=True)
    except Exception:
        found: dict[str, Any] = {}
        for one in reversed(owner.__mro__) if isinstance(owner, type) else [annotated_part(owner)]:
            names = vars(inspect.getmodule(one) or object)
            for name, hint in (getattr(one, "__annotations__", None) or {}).items():
                found[name] = hint
                if isinstance(hint, str):
                    try:
                        found[name] = eval(hint, dict(names))
                    except Exception:
                        found[name] = _Unresolved(hint)
        return found


class _Unresolved:
    """An annotation that could not be evaluated."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __repr__(self) -> str:
        return self.text
