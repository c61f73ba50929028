"""torch.export of a proved function: sizes by the proof's names, its conditions as assertions, and held against eager.

torch.export asks about sizes as a proof does, and keeps each question as an assertion that the program must pass,
whether it matters or not. Those are taken out, and the proof's conditions put in. Then the program runs at sizes where
those questions have other answers, and must give what the function gives.
"""

import inspect
import math
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Annotated, Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.fx import Node

from shaped.arguments import OWN, checked
from shaped.errors import ExportError, listing
from shaped.export.comparing import Compared, hold, random_inputs
from shaped.export.sizes import Sizes, example
from shaped.export.subject import Forward, Owner, Subject, subject
from shaped.shapes.dims import Dim as Size
from shaped.shapes.terms import PYTHON, NotComputable, Term

_IN_GRAPHS: Mapping[str, Callable[..., Any]] = {
    "+": operator.add, "-": operator.sub, "*": operator.mul, "//": operator.floordiv, "%": operator.mod,
    "**": operator.pow, "neg": operator.neg, "==": operator.eq, "!=": operator.ne, "<": operator.lt,
    "<=": operator.le, ">": operator.gt, ">=": operator.ge, "and": operator.and_, "or": operator.or_,
    "not": torch.sym_not, "max": torch.sym_max, "min": torch.sym_min,
}  # fmt: skip
_LARGEST = 20_000  # entries of an input that is tried
_ASSERT = torch.ops.aten._assert_scalar.default


@checked
def export_program(
    forward: Annotated[Forward | nn.Module, OWN],
    params: Annotated[Owner, OWN],
    *,
    assume: Annotated[Sequence[str], OWN] = (),
    static: Annotated[Sequence[str] | Mapping[str, int], OWN] = (),
) -> ExportedProgram:
    """Export a trained function with torch.export: a program of torch's operations that holds its parameters.

    Every dimension name that the parameters do not fix is free in it. What the proof needs of sizes is asserted when it
    runs, in your names; nothing else is. Before it is returned it is run at several sizes, and compared with the
    function.

    Args:
        forward: `forward(params, *inputs)`, annotated, over the ParamList or the module; or a module's own annotated
            forward (`net.forward`).
        params: The trainer, its ParamList, or the module. The program has copies of nothing: save it to have its own.
            A module is exported as it computes after `.eval()`, and stays as it is.
        assume: Relations between sizes to take as given, as for `prove`.
        static: Names that have one size in the program, with their sizes.

    Returns:
        The ExportedProgram. Its inputs have the names of the function's arguments (`batch_ids` for `batch.ids`), its
        parameters those of the list or the module; `.module()` runs it, `torch.export.save` writes it.

    Raises:
        SignatureError, ProofError, Unprovable, ShapeError: As for a trainer.
        ExportError: torch.export refuses it, it draws at random or writes, or what was exported gives another result
            at some sizes; says where.
    """
    found = subject(forward, params, assume, static)
    return exported(found)[0]


def exported(found: Subject) -> tuple[ExportedProgram, Compared]:
    """The program, and how far it is from the function."""
    sizes = example(found.proof, found.known, found.free, fits(found))
    if sizes is None:
        raise ExportError(
            f"`{found.signature.name}`: no sizes up to 64 satisfy {', '.join(found.proof.conditions) or 'its shapes'}; "
            "declare what is fixed: static={'name': size}"
        )
    program = _trace(found, sizes)
    _assert_conditions(found, program)
    _refuse_random(found, program, sizes)
    module = program.module()
    held = hold(found, sizes, fits(found), lambda inputs: flat(module(*inputs)), "the exported program")
    return program, held


def flat(result: Any) -> list[Tensor]:
    """The tensors that an exported program returned."""
    return [result] if isinstance(result, Tensor) else list(result)


def fits(found: Subject) -> Callable[[Sizes], bool]:
    """Whether every axis of every input has a size at such sizes, of at least 1, and none is large to compute with."""

    def every_axis(sizes: Sizes) -> bool:
        try:
            shapes = [[dim.evaluate(sizes) for dim in entry.spec.dims] for entry in found.entries]
        except (ArithmeticError, KeyError):
            return False
        return all(min(shape, default=1) >= 1 and math.prod(shape) <= _LARGEST for shape in shapes)

    return every_axis


def holder(found: Subject) -> nn.Module:
    """A module that has the tensors under their names, and calls the function with them."""
    paths: list[str] = []

    class Exported(nn.Module):
        """The function with its parameters."""

        def forward(self, *inputs: Tensor) -> Any:
            _check_names(found, inputs)
            results = found.setting.run([*(_at(self, path) for path in paths), *inputs])
            return results[0] if len(results) == 1 else tuple(results)

    parameters = [inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD) for name in ("self", *found.inputs)]
    Exported.forward.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    root = Exported()
    for name, tensor in zip(found.names, found.tensors, strict=True):
        *above, leaf = [part if not hasattr(nn.Module, part) else f"{part}_" for part in name.split(".")]
        owner: nn.Module = root
        for part in above:
            owner = owner._modules.setdefault(part, nn.Module()) or owner
        if isinstance(tensor, nn.Parameter) or tensor.requires_grad:
            owner._parameters[leaf] = nn.Parameter(tensor.detach(), requires_grad=False)
        else:
            owner._buffers[leaf] = tensor.detach()
        paths.append(".".join((*above, leaf)))
    return root


def _at(module: nn.Module, path: str) -> Tensor:
    *above, leaf = path.split(".")
    for part in above:
        child = module._modules[part]
        assert child is not None
        module = child
    tensor = module._parameters.get(leaf, module._buffers.get(leaf))
    assert tensor is not None
    return tensor


def _trace(found: Subject, sizes: Sizes) -> ExportedProgram:
    """torch.export at example sizes, with each free axis dynamic."""
    inputs = tuple(
        torch.zeros([dim.evaluate(sizes) for dim in entry.spec.dims], dtype=dtype, device=found.setting.device)
        for entry, dtype in zip(found.entries, found.dtypes, strict=True)
    )
    shapes = {
        name: {i: Dim.DYNAMIC for i, dim in enumerate(entry.spec.dims) if set(dim.names) & set(found.free)}
        for name, entry in zip(found.inputs, found.entries, strict=True)
    }
    module = holder(found)
    try:
        with found.evaluating(), torch.no_grad():
            return torch.export.export(
                module, inputs, dynamic_shapes=shapes, strict=False, prefer_deferred_runtime_asserts_over_guards=True
            )
    except Exception as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise ExportError(f"torch.export refuses `{found.signature.name}`: {reason[0]}") from None


def _check_names(found: Subject, inputs: Sequence[Tensor]) -> None:
    """Tell the tracer that a name is one size wherever it stands."""
    values = _values(found, lambda i, axis: inputs[i].shape[axis])
    for i, entry in enumerate(found.entries):
        for axis, dim in enumerate(entry.spec.dims):
            if set(dim.names) & set(found.free):
                torch._check(inputs[i].shape[axis] == dim.evaluate(values))


def _values(
    found: Subject, size: Callable[[int, int], Any], operations: Mapping[str, Callable[..., Any]] = PYTHON
) -> dict[str, Any]:
    """A value for each name: of an axis that is the name, or linear in it; ExportError where no axis tells it."""
    values: dict[str, Any] = dict(found.known)
    axes = [(i, a, dim) for i, entry in enumerate(found.entries) for a, dim in enumerate(entry.spec.dims)]
    for i, axis, dim in axes:
        if dim.is_name:
            values.setdefault(dim.text, size(i, axis))
    for _ in found.free:
        for i, axis, dim in axes:
            missing = [name for name in dim.names if name not in values]
            if len(missing) == 1 and _is_linear(dim, missing[0]):
                offset, one = (dim.term.evaluate({**values, missing[0]: x}, operations) for x in (0, 1))
                rest = operations["-"](size(i, axis), offset)
                values[missing[0]] = operations["//"](rest, operations["-"](one, offset))
    if unknown := [name for name in found.free if name not in values]:
        raise ExportError(f"no axis of an input tells {listing(unknown)}: give an input that has it alone as an axis")
    return values


def _is_linear(dim: Size, name: str) -> bool:
    """Whether a size of this dimension tells that of a name."""
    others = {n: 1 for n in dim.names if n != name}
    try:
        return dim.solve(dim.evaluate({**others, name: 0}), others) is not None
    except ArithmeticError:
        return False


def _refuse_random(found: Subject, program: ExportedProgram, sizes: Sizes) -> None:
    """An operation that may draw does not where its share is 0, as attention's dropout; so two runs are compared."""
    draws = torch.Tag.nondeterministic_seeded
    may = [node for node in program.graph.nodes if draws in getattr(node.target, "tags", ())]
    if not may:
        return
    module, inputs = program.module(), random_inputs(found, sizes)
    drawn = []
    for seed in (0, 1):
        with torch.random.fork_rng(), torch.no_grad():
            torch.manual_seed(seed)
            drawn.append(flat(module(*inputs)))
    if not all(torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in zip(*drawn, strict=True)):
        name = next((node for node in may if 0.0 not in node.args[1:]), may[0]).target.__name__.split(".")[0]
        raise ExportError(
            f"`{found.signature.name}` draws at random ({name}{line_of(found, name)}): what is exported has one "
            "answer. Write the function as it infers, without dropout"
        )


def line_of(found: Subject, operation: str) -> str:
    """` at model.py:14`: the line of the derivation that has this operation, where one has; torch keeps no other."""
    named = [step for step in found.proof.steps if step.operation.strip("_") in operation]
    longest = max(named, key=lambda step: len(step.operation), default=None)
    return f" at {longest.place}" if longest is not None else ""


# -- the proof's conditions instead of torch's questions ---------------------------------------------------------------


def _assert_conditions(found: Subject, program: ExportedProgram) -> None:
    """Take out what torch.export asserts of sizes, and put in the conditions of the proof."""
    graph = program.graph
    for node in list(graph.nodes):
        if node.target is _ASSERT:
            graph.erase_node(node)
    graph.eliminate_dead_code()
    entered = set(program.graph_signature.user_inputs)
    inputs = [node for node in graph.nodes if node.op == "placeholder" and node.name in entered]
    last = next(node for node in reversed(graph.nodes) if node.op == "placeholder")
    with _one_after_another(graph, last) as call:

        def size(i: int, axis: int) -> Any:
            value = inputs[i].meta["val"].shape[axis]
            return value if isinstance(value, int) else call(torch.ops.aten.sym_size.int, inputs[i], axis)

        operations = {op: _folded(call, function) for op, function in _IN_GRAPHS.items()}
        values = _values(found, size, operations)
        for condition in found.proof.side_conditions:
            if not set(condition.names) <= set(found.known):
                _assert(condition.term, str(condition), values, operations, call)
    graph.eliminate_dead_code()
    program.graph_module.recompile()
    _set_ranges(found, program, inputs)


Call = Callable[..., Any]


@contextmanager
def _one_after_another(graph: Any, last: Node) -> Iterator[Call]:
    """A function that adds an operation to a graph after those added before, or computes it where it is known."""
    place = last

    def call(function: Any, *args: Any) -> Any:
        nonlocal place
        if not any(isinstance(arg, Node) for arg in args):
            return function(*args)
        known = [arg.meta["val"] if isinstance(arg, Node) else arg for arg in args]
        with graph.inserting_after(place):
            place = graph.call_function(function, args)
        place.meta["val"] = function(*known)
        return place

    yield call


def _assert(term: Term, text: str, values: Mapping[str, Any], operations: Mapping[str, Call], call: Call) -> None:
    """Assert a condition where the program runs; one with functions that no graph has is left to the proof's text."""
    try:
        holds = term.evaluate(values, operations)
    except NotComputable:
        return
    if isinstance(holds, Node):
        call(_ASSERT, holds, f"proved only where {text}")


def _folded(call: Call, function: Callable[..., Any]) -> Callable[..., Any]:
    """An operation in the graph, of two or more operands."""

    def fold(*args: Any) -> Any:
        if len(args) < 3:
            return call(function, *args)
        return call(function, fold(*args[:-1]), args[-1])

    return fold


def _set_ranges(found: Subject, program: ExportedProgram, inputs: Sequence[Node]) -> None:
    """Every size from 1 up to what a condition `seq <= context` says, instead of what one example told torch."""
    from torch.utils._sympy.numbers import int_oo
    from torch.utils._sympy.value_ranges import ValueRanges

    axes = [
        (size.node.expr, dim.text)
        for node, entry in zip(inputs, found.entries, strict=True)
        for size, dim in zip(node.meta["val"].shape, entry.spec.dims, strict=True)
        if not isinstance(size, int)
    ]
    for expression in program.range_constraints:
        bounds = [upper_bound(found, text) for known, text in axes if known == expression]
        largest = min((bound for bound in bounds if bound is not None), default=int_oo)
        program.range_constraints[expression] = ValueRanges(1, largest)


def upper_bound(found: Subject, name: str) -> int | None:
    """The largest size that a condition admits, where one says `seq <= 16`."""
    bounds = []
    for condition in found.proof.side_conditions:
        match condition.term:
            case Term("<=" | "<" as op, (Term("name", (left,)), right)) if left == name:
                try:
                    bounds.append(int(right.evaluate(found.known)) - (op == "<"))
                except (KeyError, ArithmeticError, NotComputable):
                    continue
    return min(bounds, default=None)
