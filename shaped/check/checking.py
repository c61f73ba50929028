"""Each annotated function of a module proved: a verdict for each."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, get_args, get_origin

from shaped.check.verdicts import Status, Verdict
from shaped.errors import ProofError, ShapedError, SignatureError, Unprovable, first_line, nearest


def check_file(
    module: ModuleType, path: Path, name: str, assume: Sequence[str], static: Mapping[str, Any]
) -> list[Verdict]:
    """Prove the functions of a module, or the one that is named.

    Args:
        assume: Relations, each for the functions that have its names.
        static: Names with their sizes, None for one of our choice; each for the functions that have it.

    Raises:
        ShapedError: There is no such function, or none that is annotated; or no function has a name of `static`.
    """
    functions = functions_of(module)
    if name and name not in functions:
        raise ShapedError(f"{path} has no function `{name}`{nearest(name, list(functions))}")
    found = {key: value for key, value in functions.items() if (key == name if name else _has_shapes(value))}
    if not found:
        raise ShapedError(f'{path} has no function whose arguments are annotated with shapes (x: Float[Tensor, "a b"])')
    names = {key: _dimensions(value) for key, value in found.items()}
    every = list(dict.fromkeys(n for known in names.values() for n in known))
    for wanted in static:
        if wanted not in every:
            where = f"`{name}`" if name else str(path)
            raise SignatureError(f"`{wanted}` is no dimension of {where}{nearest(wanted, every)}")
    return [_verdict(key, value, names[key], assume, static) for key, value in found.items()]


def _verdict(
    name: str, function: Callable[..., Any], dims: Sequence[str], assume: Sequence[str], static: Mapping[str, Any]
) -> Verdict:
    from shaped.proof import prove

    code = inspect.unwrap(function).__code__
    where = (name, code.co_filename, code.co_firstlineno)
    mine = {n: size for n, size in static.items() if n in dims}
    sized = {n: size for n, size in mine.items() if size is not None}
    relations = tuple(text for text in assume if set(_names(text)) <= set(dims) or not _names(text))
    try:
        proof = prove(function, relations, sized if len(sized) == len(mine) else tuple(mine))
    except (ProofError, Unprovable) as error:
        status: Status = "refuted" if isinstance(error, ProofError) else "unprovable"
        goal = error.goal.equation or error.goal.said
        at = f"at {error.source}: " if error.source else ""
        summary = f"{at}{goal}" if isinstance(error, ProofError) and goal else f"{at}{error.title}"
        return Verdict(*where, status, summary, _text(error), error.source)
    except SystemExit as error:  # of the function's own: the others are still to be looked at
        said = f"it ends the process: sys.exit({error.code!r})"
        return Verdict(*where, "error", said, f"SystemExit: {said}")
    except Exception as error:  # a signature that cannot be read, or the function's own while it was traced
        return Verdict(*where, "error", first_line(error), _text(error))
    at = ", ".join(f"{n} = {size}" for n, size in proof.static.items())
    conditions = f"if {', '.join(proof.conditions)}" if proof.conditions else "for all sizes"
    conditions += f", at {at}" if at else ""
    return Verdict(
        *where, "proved", conditions, str(proof), None, proof.conditions, tuple(map(str, proof.steps)), proof.seconds
    )


def _text(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def _names(relation: str) -> tuple[str, ...]:
    """The dimension names of a relation; none where it cannot be read, which `prove` then says."""
    from shaped.proof.conditions import Assumption

    try:
        return Assumption.parse(relation).names
    except SignatureError:
        return ()


def _dimensions(function: Callable[..., Any]) -> list[str]:
    """Every dimension name of a function; none where its signature cannot be read, which `prove` then says."""
    from shaped.shapes import read_signature

    try:
        entries = read_signature(function).entries
    except SignatureError:
        return []
    return list(dict.fromkeys(name for entry in entries for dim in entry.spec.dims for name in dim.names))


def functions_of(module: ModuleType) -> dict[str, Callable[..., Any]]:
    """The functions that a module itself defines, in order."""
    return {
        name: value
        for name, value in vars(module).items()
        if callable(value) and inspect.isfunction(inspect.unwrap(value)) and value.__module__ == module.__name__
    }


def _has_shapes(function: Callable[..., Any]) -> bool:
    """Whether a function is meant to be proved: its result has a shape, or it declares none and an argument has one.

    So a helper over parameters that returns a float is left out, and a loss with a forgotten annotation is not.
    """
    from shaped.shapes import is_tensor_annotation, read_container, resolve_hints

    try:
        hints = resolve_hints(inspect.unwrap(function))
    except SignatureError:
        return True  # and `prove` will say what does not resolve
    if "return" not in hints:
        return any(map(is_tensor_annotation, hints.values()))
    result = hints["return"]
    if any(map(is_tensor_annotation, get_args(result) if get_origin(result) is tuple else (result,))):
        return True
    try:
        return bool(read_container(result, "result", function.__name__).entries)
    except SignatureError:
        return False
