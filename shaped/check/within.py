"""Functions within functions: what a function makes and returns, or hands on, such as a hook."""

import ast
import inspect
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from types import CodeType, FrameType, ModuleType
from typing import Any

from shaped.check.targets import Target, is_empty
from shaped.errors import ProofError, Unprovable


def inner_of(module: ModuleType, outer: Sequence[Target]) -> dict[str, Target]:
    """The annotated functions within functions, `hook.<locals>.add`: each with its annotations, and no body.

    An annotation that needs a variable of the function around it is left out with its function.
    """
    try:
        tree = ast.parse(inspect.getsource(module))
    except (OSError, TypeError, SyntaxError):
        return {}
    nodes = {(node.name, _begins(node)): node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    found: dict[str, Target] = {}
    for target in outer:
        code = getattr(inspect.unwrap(target.function), "__code__", None)
        inside = [c for c in code.co_consts if isinstance(c, CodeType)] if code is not None else []
        for one in inside:
            node = nodes.get((one.co_name, one.co_firstlineno))
            if node is None or is_empty(node.body):
                continue
            function = _without_body(module, node, one.co_filename)
            name = f"{target.name}.<locals>.{one.co_name}"
            if function is not None:
                lines = range(one.co_firstlineno, (node.end_lineno or node.lineno) + 1)
                found[name] = Target(name, function, target.owner, target.kind, target.function, lines)
    return {name: target for name, target in found.items() if target.has_shapes}


def _begins(node: ast.FunctionDef) -> int:
    return min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])


def _without_body(module: ModuleType, node: ast.FunctionDef, file: str) -> Callable[..., Any] | None:
    """A function of the same signature."""
    body: list[ast.stmt] = [ast.copy_location(ast.Pass(), node)]
    alone = ast.copy_location(ast.FunctionDef(node.name, node.args, body, [], node.returns), node)
    made: dict[str, Any] = {}
    try:
        exec(compile(ast.fix_missing_locations(ast.Module([alone], [])), file, "exec"), vars(module), made)
    except Exception:
        return None
    return made[node.name]  # type: ignore[no-any-return]


class Within:
    """Calls a function, and takes a function within it as it was made there."""

    def __init__(self, target: Target) -> None:
        self._target, self._name = target, target.name.rpartition(".")[2]
        self._outer: Any = inspect.unwrap(target.within)  # type: ignore[arg-type]
        self._frames: list[dict[str, Any]] = []
        self._made = False

    def taken(
        self, first: Sequence[Any], arguments: Sequence[tuple[inspect.Parameter, Any]]
    ) -> tuple[Callable[..., Any], list[tuple[inspect.Parameter, Any]]]:
        """The function, with what it encloses, and those of the arguments that are its own.

        Raises:
            Unprovable: The call came to its end before it was made.
        """
        count = len(without_stars(self._outer)[self._target.kind != "function" :])
        positional, keywords = in_order(arguments[:count])
        before = sys.getprofile()
        sys.setprofile(self._leave)
        try:
            self._outer(*first, *positional, **keywords)
        finally:
            sys.setprofile(before)
        made: Any = self._frames[-1].get(self._name) if self._frames else None
        if not callable(made) or not inspect.isfunction(inspect.unwrap(made)):
            raise Unprovable(f"`{self._name}` is not made where `{self._outer.__qualname__}` is called like this.")
        self._made = True
        return inspect.unwrap(made), list(arguments[count:])

    def blamed(self, error: ProofError) -> ProofError | Unprovable:
        """The error, if it is of the function within; what is wrong around it says nothing of it."""
        source, code = error.source, self._outer.__code__
        lines = range(code.co_firstlineno, max(line or 0 for *_, line in code.co_lines()) + 1)
        around = source is not None and source.file == code.co_filename and source.line in lines
        if self._made and not (around and source is not None and source.line not in self._target.lines):
            return error
        hint = f"this is of `{self._outer.__qualname__}`, which makes it: check that by itself"
        return Unprovable(error.title, source, replace(error.goal, hint=hint, sizes={}))

    def _leave(self, frame: FrameType, event: str, argument: Any) -> None:
        if event == "return" and frame.f_code is self._outer.__code__:
            self._frames.append(frame.f_locals)


def without_stars(function: Any) -> list[inspect.Parameter]:
    """Its parameters, without those for any number of arguments."""
    every = inspect.signature(inspect.unwrap(function)).parameters.values()
    return [one for one in every if one.kind not in (one.VAR_POSITIONAL, one.VAR_KEYWORD)]


def in_order(arguments: Sequence[tuple[inspect.Parameter, Any]]) -> tuple[list[Any], dict[str, Any]]:
    """Values as they are given: by position and by name."""
    alone = [(one.name, value) for one, value in arguments if one.kind is one.KEYWORD_ONLY]
    return [value for one, value in arguments if one.kind is not one.KEYWORD_ONLY], dict(alone)
