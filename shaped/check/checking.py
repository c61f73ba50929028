"""Each annotated function and method of a module proved: a verdict for each."""

import ast
import inspect
import linecache
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

from shaped.check.cases import Examined, Prover, dimensions
from shaped.check.choices import has_shape, without_none
from shaped.check.instances import Factories, Instances, constructor, hints_of
from shaped.check.journal import Journal
from shaped.check.programs import admits_both
from shaped.check.refusals import Unbuilt, as_options, words
from shaped.check.statements import conditions, for_which, statement, summary, values
from shaped.check.targets import Target, declares_only, functions_of, methods_of, named
from shaped.check.verdicts import Shape, Status, Verdict
from shaped.check.within import inner_of
from shaped.check.written import names_of
from shaped.errors import ProofError, ShapedError, SignatureError, Unprovable, nearest
from shaped.proof import Proof, Step
from shaped.proof.source import place_of_traceback

_MOST_AXES = 2  # names such as `*batch` that one proof takes


def check_file(
    module: ModuleType,
    path: Path,
    name: str,
    assume: Sequence[str],
    static: Mapping[str, Any],
    factories: Sequence[str] = (),
    auto: bool = False,
    journal: Journal | None = None,
) -> list[Verdict]:
    """Prove the functions and methods of a module, or those that are named.

    Args:
        name: Of a function, a class or a method (`Net.forward`); all of the file's where it is empty.
        assume: Relations, each for the functions that have its names.
        static: Names with their sizes, None for one of our choice; each for the functions that have it.
        factories: How instances of a class are made, where its constructor cannot tell: `Net(Config(dim=8))`.
        auto: Take a dimension that a program reads as a number at some numbers, and state them.
        journal: Where each function is noted before and after it is looked at; what it knows is not asked again.

    Raises:
        ShapedError: There is no such function.
    """
    functions, methods = functions_of(module), methods_of(module)
    outer = [*(Target(key, function) for key, function in functions.items()), *methods.values()]
    methods |= inner_of(module, outer)
    found = _found(functions, methods, name)
    if name and not found:
        known = [*functions, *methods, *(key.rpartition(".")[0] for key in methods)]
        raise ShapedError(f"{path} has no function `{name}`{nearest(name, known)}")
    instances = Instances(Factories(factories, vars(module)))
    verdicts: list[Verdict] = []
    last = next(reversed(found), "")
    for target in found.values():
        verdict = journal.known.get(target.name) if journal is not None else None
        if verdict is None:
            if journal is not None:
                journal.begin(_where(target), target.name == last)
            instances.factories.used.clear()
            verdict = _verdict(target, instances, assume, static, auto)
            dims = tuple(dict.fromkeys([*verdict.dims, *_dimensions(target)]))
            verdict = replace(verdict, header=_header(target), dims=dims, factories=tuple(instances.factories.used))
            if journal is not None:
                journal.end(verdict)
        verdicts.append(verdict)
    return verdicts


def _where(target: Target) -> tuple[str, str, int]:
    code = inspect.unwrap(target.function).__code__
    return target.name, code.co_filename, code.co_firstlineno


def _found(functions: Mapping[str, Any], methods: Mapping[str, Target], name: str) -> dict[str, Target]:
    if name:
        some = named(name, functions, methods)
        return some if name in some else {key: target for key, target in some.items() if target.has_shapes}
    every = [Target(key, function) for key, function in functions.items() if _is_meant(function)]
    every += [target for target in methods.values() if target.has_shapes]
    every = [target for target in every if not declares_only(target.function)]
    every.sort(key=lambda target: inspect.unwrap(target.function).__code__.co_firstlineno)
    return {target.name: target for target in every}


def _verdict(
    target: Target, instances: Instances, assume: Sequence[str], static: Mapping[str, Any], auto: bool
) -> Verdict:
    where = _where(target)
    try:
        examined = None
        about = instances.factories.are_about(target.name, inspect.signature(target.function).parameters)
        if _is_plain(target) and not about:
            try:
                return _stated(where, _proof(target, assume, static))
            except (ProofError, SignatureError):
                raise
            except Exception as error:  # which one proof cannot say may be said in several
                examined = _otherwise(Prover(target, instances, assume, static, auto), error)
        examined = examined or Prover(target, instances, assume, static, auto).examine()
        proofs = [proof for held in examined.held for proof in held.proofs]
        seconds, dims = sum(proof.seconds for proof in proofs), (name for proof in proofs for name in proof.dims)
        steps = proofs[0].steps
        return Verdict(
            *where, "proved", summary(examined), statement(examined), None, tuple(conditions(examined)),
            tuple(map(str, steps)), seconds, _shapes(steps, where[1]), dims=tuple(dict.fromkeys(dims)),
        )  # fmt: skip
    except (ProofError, Unprovable, MemoryError, RuntimeError) as error:
        from shaped.proof.trials import is_memory

        if is_memory(error):
            said = "it takes more memory than the process may have (--memory)"
            return Verdict(*where, "unprovable", said, f"Unprovable: `{target.name}`: {said}")
        if not isinstance(error, ProofError | Unprovable):
            return _erroneous(where, error)
        status: Status = "refuted" if isinstance(error, ProofError) else "unprovable"
        goal = error.goal.equation or error.goal.said
        at = f"at {error.source}: " if error.source else ""
        said = f"{at}{goal}" if isinstance(error, ProofError) and goal else f"{at}{error.title}"
        context = tuple(error.goal.context)
        return Verdict(
            *where,
            status,
            said,
            words(error, str(error)),
            error.source,
            context=context,
            hint=as_options(error.goal.hint),
            shapes=_shapes(error.steps, where[1]),
        )
    except Unbuilt as unbuilt:
        said = f"its arguments could not be made: {unbuilt}"
        return Verdict(*where, "unprovable", said, f"Unprovable: `{target.name}`: {said}")
    except SystemExit as error:  # of the function's own: the others are still to be looked at
        said = f"it ends the process: sys.exit({error.code!r})"
        return Verdict(*where, "error", said, f"SystemExit: {said}")
    except Exception as error:  # a signature that cannot be read, or the function's own while it was traced
        return _erroneous(where, error)


def _erroneous(where: tuple[str, str, int], error: Exception) -> Verdict:
    place = place_of_traceback(error.__traceback__)
    source = place.source() if place is not None else None
    at = f"at {source}: " if source is not None else ""
    shown = f"\n  {source}   {source.text}" if source is not None else ""
    return Verdict(*where, "error", f"{at}{words(error)}", words(error, str(error)) + shown, source)


def _otherwise(prover: Prover, error: Exception) -> Examined:
    """What is proved in cases; where that leads nowhere, the first error, which says more."""
    try:
        return prover.examine()
    except ProofError:
        raise
    except Exception as other:
        known = isinstance(error, Unprovable) and not (error.on_data or error.absent)
        raise error if known or not isinstance(other, Unprovable) else other from None


def _stated(where: tuple[str, str, int], proof: Proof) -> Verdict:
    at = ", ".join(f"{n} = {size}" for n, size in proof.static.items())
    stated = ", ".join(for_which(proof.conditions, at, not set(proof.dims) <= set(proof.static)))
    said = values([proof, *([proof.without] if proof.without is not None else [])])
    message = "\n".join([str(proof), *([f"values       {', '.join(said)}"] if said else [])])
    return Verdict(
        *where, "proved", stated, message, None, proof.conditions, tuple(map(str, proof.steps)), proof.seconds,
        _shapes(proof.steps, where[1]),
    )  # fmt: skip


def _shapes(steps: Sequence[Step], file: str) -> tuple[Shape, ...]:
    """The expressions of a file whose shapes a proof met, each once."""
    found: dict[Shape, None] = {}
    for step in steps:
        source = step.source
        if source is not None and source.marks and source.file == file:
            raw = linecache.getline(file, source.line)
            indent = len(raw) - len(raw.lstrip())
            start = indent + len(source.marks) - len(source.marks.lstrip())
            found[Shape(source.line, start, indent + len(source.marks), step.result)] = None
    return tuple(found)


def _proof(target: Target, assume: Sequence[str], static: Mapping[str, Any]) -> Proof:
    """The proof of a function whose signature says all that is needed: with its gradients, if it is a loss."""
    from shaped.proof import prove

    dims = _dimensions(target)
    mine = {n: size for n, size in static.items() if n in dims}
    sized = {n: size for n, size in mine.items() if size is not None}
    relations = tuple(text for text in assume if names_of(text) <= set(dims) or not names_of(text))
    return prove(target.function, relations, sized if len(sized) == len(mine) else tuple(mine))


def _header(target: Target) -> int:
    """How many lines a definition has, up to its body."""
    try:
        lines, _ = inspect.getsourcelines(inspect.unwrap(target.function).__code__)
        node = ast.parse(textwrap.dedent("".join(lines))).body[0]
    except (OSError, SyntaxError, IndexError):
        return 1
    return max(1, node.body[0].lineno - 1) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) else 1


def _is_plain(target: Target) -> bool:
    """Whether one proof says it all: tensors and lists of parameters, and defaults for the rest."""
    from shaped.shapes import read_signature

    if (
        target.owner is not None
        or target.within is not None
        or inspect.iscoroutinefunction(inspect.unwrap(target.function))
    ):
        return False
    annotations = hints_of(inspect.unwrap(target.function))
    if any(has_shape(hint) and without_none(hint)[1] for hint in annotations.values()):
        return False
    parameters = inspect.signature(inspect.unwrap(target.function)).parameters.values()
    if any(p.kind is p.VAR_POSITIONAL and has_shape(annotations.get(p.name)) for p in parameters):
        return False  # of which nothing is given, as the statement says
    if any(annotations.get(p.name) in (int, bool) and p.default is p.empty for p in parameters):
        return False  # a number of Python's, which `prove` takes as a tensor
    try:
        signature = read_signature(target.function)
        given = {entry.spec.axes for entry in signature.entries}
        if any(admits_both(entry.spec) for entry in signature.entries):
            return False
        return len(signature.axes) <= _MOST_AXES and set(signature.axes) <= given
    except SignatureError:
        return not any(map(has_shape, annotations.values()))  # `prove` will say what it cannot read


def _dimensions(target: Target) -> list[str]:
    """Every dimension name of a function or method; none where its annotations cannot be read."""
    from shaped.shapes import read_signature

    try:
        entries = (
            [] if target.owner is not None or target.within is not None else read_signature(target.function).entries
        )
    except SignatureError:
        entries = ()
    names = [name for entry in entries for dim in entry.spec.dims for name in dim.names]
    makers = [inspect.unwrap(target.function), *([constructor(target.owner)] if target.owner is not None else [])]
    makers += [inspect.unwrap(target.within)] if target.within is not None else []
    annotations = [hint for maker in makers for hint in hints_of(maker).items() if hint[0] != "return"]
    names += [*dimensions(hint for _, hint in annotations), *(name for name, hint in annotations if hint is int)]
    return list(dict.fromkeys(names))


def _is_meant(function: Any) -> bool:
    """Whether a function is meant to be proved: a result or an argument has a shape, or it is a loss over parameters.

    So a helper over parameters that returns a float is left out, and a loss with a forgotten annotation is not.
    """
    from shaped.shapes import is_tensor_annotation, read_container, resolve_annotations

    try:
        annotations = resolve_annotations(inspect.unwrap(function))
    except SignatureError:
        return True  # and `prove` will say what does not resolve
    if any(map(has_shape, annotations.values())):
        return True
    if "return" not in annotations:
        return any(map(is_tensor_annotation, annotations.values()))
    try:
        return bool(read_container(annotations["return"], "result", function.__name__).entries)
    except SignatureError:
        return False
