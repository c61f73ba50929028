"""What the user's annotations claim along the way: of local variables, and of helpers' arguments.

    def feed(x: Float[Tensor, "batch dim"], w: Float[Tensor, "dim out"]) -> Float[Tensor, "batch out"]:
        h: Float[Tensor, "batch out"] = x @ w

They are held against the symbolic shapes at the next operation. An attribute that its class annotates is held where the
constructor sets it (`self.w = ...`, `self.register_buffer("w", ...)`): later it may grow, as a cache does. As under
jaxtyping, names mean one size within one call of one function; those of the function that is proved are those of the
statement.
"""

import ast
import inspect
import sys
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from types import CodeType, FrameType
from typing import Any

from torch import SymInt, Tensor

from shaped.errors import SignatureError, Source
from shaped.proof.source import Place, is_users
from shaped.proof.symbolic import World
from shaped.shapes import TensorSpec, dtype_name, is_tensor_annotation, read_tensor, resolve_annotations

_REGISTERS = ("self.register_buffer", "self.register_parameter")


@dataclass(frozen=True)
class Claim:
    """The annotation of a local variable, or of an attribute as it is set: `self.w`."""

    name: str
    line: int  # the last of its statement
    spec: TensorSpec


@dataclass
class _Scope:
    """One call of one of the user's functions."""

    frame: FrameType  # kept, so that no other has its id
    sizes: dict[str, Any]
    claims: list[Claim]


@dataclass(frozen=True)
class Broken:
    """A claim that does not hold."""

    name: str
    spec: TensorSpec
    tensor: Tensor
    goal: str
    source: Source
    function: str  # whose argument it is; empty for a local variable
    meant: tuple[Any, ...] = ()  # the sizes that it says, as far as they are known


@dataclass
class Claims:
    """The claims of one run."""

    world: World
    code: CodeType | None  # of the function that is proved
    _scopes: dict[int, _Scope] = field(default_factory=dict)

    def broken(self, place: Place) -> Broken | None:
        """The first claim that does not hold, of those made since the last operation in this frame."""
        frame = place.frame
        scope = self._scopes.get(id(frame))
        if scope is None:
            top = frame.f_code is self.code
            scope = _Scope(frame, dict(self.world.values) if top else {}, list(_local_claims(frame)))
            self._scopes[id(frame)] = scope
            found = None if top else self._arguments(scope)
            if found is not None:
                return found
        return self._locals(scope, place.line)

    def left(self) -> Broken | None:
        """The first of the claims after which no operation came: a frame keeps its variables when it has returned."""
        return next(filter(None, (self._locals(scope, None) for scope in self._scopes.values())), None)

    def _locals(self, scope: _Scope, before: int | None) -> Broken | None:
        for claim in [claim for claim in scope.claims if before is None or claim.line < before]:
            scope.claims.remove(claim)
            name, _, attribute = claim.name.partition(".")
            value = scope.frame.f_locals.get(name)
            if attribute:  # a name on `self` is the constructor's integer of that name
                value = _attribute(value, attribute)
                scope.sizes.update((n, scope.frame.f_locals[n]) for dim in claim.spec.dims for n in dim.names
                                   if isinstance(scope.frame.f_locals.get(n), int | SymInt))  # fmt: skip
            goal = self._goal(claim.spec, value, scope.sizes) if isinstance(value, Tensor) else ""
            if goal and isinstance(value, Tensor):
                source = Place(scope.frame, -1, claim.line).source()
                return Broken(claim.name, claim.spec, value, goal, source, "", _meant(claim.spec, scope.sizes))
        return None

    def _arguments(self, scope: _Scope) -> Broken | None:
        name, specs = _argument_specs(scope.frame)
        for argument, spec in specs.items():
            value = scope.frame.f_locals.get(argument)
            goal = self._goal(spec, value, scope.sizes) if isinstance(value, Tensor) else ""
            caller = scope.frame.f_back
            while caller is not None and not is_users(caller):
                caller = caller.f_back
            if goal and caller is not None and isinstance(value, Tensor):
                source = Place(caller, caller.f_lasti, caller.f_lineno).source()
                return Broken(argument, spec, value, goal, source, name, _meant(spec, scope.sizes))
        return None

    def _goal(self, spec: TensorSpec, value: Tensor, sizes: dict[str, Any]) -> str:
        """The equality that a claim lacks; binds the names that it is the first to use."""
        shown = [self.world.show(size) for size in value.shape]
        if value.dim() != len(spec.dims):
            return f"[{', '.join(shown)}] = {spec}"
        for dim, size, text in zip(spec.dims, value.shape, shown, strict=True):
            if dim.is_name:
                sizes.setdefault(dim.text, size)
            if set(dim.names) <= set(sizes) and not self.world.same(dim.evaluate(sizes), size):
                meant = self.world.show(dim.evaluate(sizes))
                return f"{text} = {meant}" + (f"   ({dim})" if meant != str(dim) else "")
        if value.dtype not in spec.dtypes:
            return f"{dtype_name(value.dtype)} is {spec.kind}"
        return ""


def _attribute(owner: Any, name: str) -> Any:
    """What an instance itself holds under a name, a module its parameters and buffers."""
    held = getattr(owner, "__dict__", {})
    tables = (held, held.get("_parameters") or {}, held.get("_buffers") or {})
    return next((table[name] for table in tables if name in table), None)


def _meant(spec: TensorSpec, sizes: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(dim.evaluate(sizes) if set(dim.names) <= set(sizes) else None for dim in spec.dims)


def _argument_specs(frame: FrameType) -> tuple[str, Mapping[str, TensorSpec]]:
    """Name and annotated arguments of a frame's function, where it can be found by name."""
    name = frame.f_code.co_name
    owner = frame.f_locals.get("self")
    function = (
        inspect.unwrap(found) if callable(found := frame.f_globals.get(name)) else getattr(type(owner), name, None)
    )
    if getattr(function, "__code__", None) is not frame.f_code or function is None:
        return name, {}
    try:
        annotations = resolve_annotations(function)
    except SignatureError:
        return name, {}
    specs = {argument: _spec(hint) for argument, hint in annotations.items() if argument != "return"}
    return name, {argument: spec for argument, spec in specs.items() if spec is not None}


def _spec(annotation: Any) -> TensorSpec | None:
    """A tensor's spec; None where it says nothing that can be held against one shape (`*batch`, another class)."""
    if not is_tensor_annotation(annotation):
        return None
    try:
        spec = read_tensor(annotation, "")
    except SignatureError:
        return None
    return None if spec.axes is not None else spec


def _local_claims(frame: FrameType) -> Sequence[Claim]:
    found = []
    for name, line, text in _annotated_locals(frame.f_code, frame.f_code.co_filename):
        try:
            known = eval(text, frame.f_globals, dict(frame.f_locals)) if text else _of_class(frame, name)
            spec = _spec(known)
        except Exception:  # the user's own expression, which Python itself does not evaluate
            continue
        if spec is not None:
            found.append(Claim(name, line, spec))
    return found


def _of_class(frame: FrameType, name: str) -> Any:
    """The annotation of `self.w` in the body of its class, or of one that this inherits from."""
    if frame.f_code.co_name not in ("__init__", "__post_init__"):
        return None
    for base in type(frame.f_locals.get("self")).__mro__:
        if (hint := inspect.get_annotations(base).get(name.partition(".")[2])) is not None:
            return eval(hint, dict(vars(sys.modules[base.__module__]))) if isinstance(hint, str) else hint
    return None


@lru_cache(maxsize=1024)
def _annotated_locals(code: CodeType, file: str) -> tuple[tuple[str, int, str], ...]:
    """Name, last line and annotation of each annotated assignment in a function's own body; and what is set of `self`.

    Where an attribute is set without an annotation, that is empty: its class may have one.
    `file` is part of the key: to Python, codes of two files are equal where they do the same.
    """
    try:
        lines, start = inspect.getsourcelines(code)
        tree = ast.parse(textwrap.dedent("".join(lines)))
    except (OSError, SyntaxError, TypeError, IndexError):
        return ()
    found: list[tuple[str, int, str]] = []
    waiting: list[ast.AST] = list(tree.body[0].body) if isinstance(tree.body[0], ast.FunctionDef) else []
    while waiting:
        node = waiting.pop(0)
        last = start - 1 + (getattr(node, "end_lineno", None) or 0)
        if isinstance(node, ast.AnnAssign) and node.value is not None and _is_held(node.target):
            found.append((ast.unparse(node.target), last, ast.unparse(node.annotation)))
        elif isinstance(node, ast.Assign):
            found += [(ast.unparse(one), last, "") for one in node.targets if _is_held(one) and "." in ast.unparse(one)]
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in _REGISTERS and node.args:
            name = getattr(node.args[0], "value", None)
            found += [(f"self.{name}", last, "")] if isinstance(name, str) else []
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Lambda):
            waiting.extend(ast.iter_child_nodes(node))
    return tuple(found)


def _is_held(target: ast.expr) -> bool:
    """Whether what is set is a variable, or an attribute of `self`."""
    attribute = isinstance(target, ast.Attribute) and isinstance(target.value, ast.Name) and target.value.id == "self"
    return attribute or isinstance(target, ast.Name)
