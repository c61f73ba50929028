"""From an exception in a trace to an unsolved goal: which operation, over which operands, lacking which equality.

A hint is only given if it was tried: the changed operation was run on the same symbolic operands and went through.
"""

import re
from collections.abc import Iterator, Sequence
from typing import Any

import sympy
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode

from shaped.errors import Goal, ProofError, Source, Unprovable, first_line
from shaped.proof.calls import Call, ClaimMismatch, HiddenBroadcast, Mismatch, Misplaced, ResultMismatch
from shaped.proof.goals import SYMBOLS, equation, lacking, last_answer
from shaped.proof.hints import hint_for, hint_for_view
from shaped.proof.misplaced import VIEWS
from shaped.proof.setting import Setting
from shaped.proof.source import (
    Place,
    assignment_line,
    is_own,
    is_users,
    operands_of,
    place_of_traceback,
    sizes_in,
    tensors_in,
)
from shaped.proof.symbolic import OF_DATA, World
from shaped.proof.trace import Recorder, shape_text
from shaped.proof.trials import is_memory

_UNBACKED = re.compile(
    r"truth value of Relational: .*\bz?uf?\d|Cannot convert symbols to int"
)  # torch asks for a size that data decides
_ABSENT = re.compile(r"not linked with support for|not compiled with CUDA|No CUDA GPUs|NVIDIA driver")
_REMEDIES = {  # where no mask within the operation is the way out
    "ctc_loss": "its table is as large as the longest target, which is data: give it [time, batch, classes] in float32 "
    "or float64, outside autocast and torch.func, and targets as [batch, labels]; then it is one operation",
    "_pad_packed_sequence": "it is as long as the longest, which is data: say total_length=x.shape[1]",
    "linalg_lstsq": "how many residuals there are is data; torch.linalg.pinv(a) @ b is the solution for any sizes",
    "bincount": "its length is data: F.one_hot(x, n).sum(0) counts n numbers",
    "one_hot": "give it the number of classes: F.one_hot(x, n)",
    "repeat_interleave": "its length is data: say it with output_size=, or repeat by a number",
    "unique_consecutive": "how many there are is data: make it outside, and pass it as an input",
    "unique": "how many there are is data: make it outside, and pass it as an input",
}
_COUNT = (
    "how many there are is data: keep the whole tensor and use torch.where, or choose outside and pass it as an input"
)
_WHERE = "torch.where chooses without asking; keep the value in a tensor"
_NEAR = 4  # lines between a question about sizes and the user's own `raise` about it
_LONGEST = 48  # characters of an operand's expression that are shown


def _of_a_number(setting: Setting, source: Source | None) -> str:
    """What to do where a plain number is asked for its value."""
    words = re.findall(r"\w+", source.text) if source else []
    asked = next((a.name for a in setting.signature.arguments if a.number and a.name in words), "")
    return asked and (
        f"`{asked}` is an input, of another value in each call: torch.where chooses by it. With a default it is a "
        "constant, and the proof is for that"
    )


def _of_layers(error: Exception) -> str:
    """What to do where a layer, a distribution or a mode of torch's asks for data, and no code of the user's."""
    traceback = error.__traceback__
    while traceback is not None:
        frame, traceback = traceback.tb_frame, traceback.tb_next
        if str(frame.f_globals.get("__name__", "")).startswith("torch.distributions."):
            return "it checks its arguments: say validate_args=False, with which it does not"
        if frame.f_globals.get("__name__") == "torch.nn.init":
            return "draw it outside, and pass it as an input or a parameter: here it would be another at each call"
        layer = frame.f_locals.get("self")
        if isinstance(layer, nn.Module) and getattr(layer, "momentum", 0.0) is None:
            return "a batch norm of momentum=None averages over a count of batches, which is data: give it a momentum"
    if torch.is_anomaly_enabled():
        return "set_detect_anomaly(True) looks into each gradient: leave it, nonfinite= tells of what is not finite"
    return ""


def explain(error: Exception, setting: Setting, world: World, recorder: Recorder) -> Exception:
    """What to raise instead of `error`: ours where it is about shapes, itself where it is the user's own.

    Looks for a hint, which runs the program some times.
    """
    if isinstance(error, ProofError | Unprovable) or is_memory(error):
        return error
    name = setting.signature.name
    tensors = recorder.tensors
    place = place_of_traceback(error.__traceback__)
    source = place.source() if place else None
    unprovable = _on_values(error, setting, world, recorder, place)
    if unprovable is not None:
        return unprovable
    if isinstance(error, ResultMismatch):
        return _explain_result(error, name, recorder)
    if isinstance(error, ClaimMismatch):
        claim = error.broken
        whose = f"`{claim.function}` is not given" if claim.function else f"`{claim.name}` in `{name}` is not"
        operands = f"{claim.name} : {error.shape}, declared {claim.spec}"
        title = f"{whose} what its annotation says."
        found = ProofError(title, claim.source, Goal("claim", operands, error.goal))
        found.between = _terms(claim.tensor.shape, world), _terms(claim.meant, world)
        return found
    if "not supported for tensor subclasses" in str(error):
        return Unprovable(f"`{name}` leaves torch here, so nothing is known of what follows.", source, Goal())
    if isinstance(error, OSError):
        hint = "read it outside, and pass it as an input"
        return Unprovable(f"`{name}` reads a file here.", source, Goal(said=_named(str(error), world), hint=hint))
    if isinstance(error, AttributeError) and "FakeTensor" in str(error):
        said = str(error).replace("FakeTensor", "Tensor")
        return AttributeError(said).with_traceback(_user_part(error))
    if isinstance(error, AttributeError) and is_own(error):
        return error.with_traceback(_user_part(error))
    call = recorder.call
    if isinstance(error, HiddenBroadcast | Misplaced) and error.call.place is not None:
        return _not_well_shaped(error, error.call, world, setting, tensors)
    if isinstance(error, Mismatch) and not error.goal:
        hint = "use an operation that makes a new tensor; running statistics may be parameters that are frozen"
        step = Unprovable(f"`{name}` cannot be one proved step: {error}.", source, Goal(hint=hint))
        step.writes = True
        return step
    if recorder.returned:
        said = _named(first_line(error), world)
        if "use_reentrant" in said:  # torch's advice names an argument of a call that is ours
            hint = "checkpoint(..., use_reentrant=False) keeps as little, and its gradients are the same"
            title = f"`{name}` runs a reentrant checkpoint, which torch cannot differentiate within a step."
            return Unprovable(title, source, Goal(hint=hint))
        return Unprovable(f"the gradient of `{name}` could not be traced.", source, Goal(said=said))
    if call is None or place is None or not _from_torch(error):
        return _users_own(error, name, place, world)
    if call.place is None or place.frame is not call.place.frame:
        return error.with_traceback(_user_part(error))
    return _not_well_shaped(error, call, world, setting, tensors)


def _on_values(
    error: Exception, setting: Setting, world: World, recorder: Recorder, place: Place | None
) -> Unprovable | None:
    """What is not known from shapes: values of tensors, plain numbers of sizes, devices."""
    name, source = setting.signature.name, place.source() if place is not None else None
    viewed = isinstance(error, GuardOnDataDependentSymNode) and _called(recorder) in VIEWS  # as sizes that data tell
    if isinstance(error, GuardOnDataDependentSymNode | DataDependentOutputException) and not viewed:
        hint = _of_a_number(setting, source) or _of_layers(error) or _REMEDIES.get(_called(recorder), _WHERE)
        title = f"`{name}` depends on data here: a branch, or a number read with .item(), is not known from shapes."
        on_data = Unprovable(title, source, Goal(hint=hint))
        on_data.on_data = on_data.counts = True
        return on_data
    if viewed or isinstance(error, DynamicOutputShapeException) or _UNBACKED.search(str(error)):
        hint = _REMEDIES.get(_called(recorder), "use a mask and torch.where")
        shaped = Unprovable(f"`{name}` makes a tensor here whose shape depends on data.", source, Goal(hint=hint))
        shaped.counts = True
        return shaped
    if _ABSENT.search(str(error)):
        absent = Unprovable(f"`{name}` asks for a device that is not here.", source, Goal(said=first_line(error)))
        absent.absent = True
        return absent
    asked_for_number = isinstance(error, TypeError) or "but got Sym" in str(error)  # of a generator: its seed
    if asked_for_number and ("SymInt" in str(error) or "SymFloat" in str(error)):
        told = "its text" if "format" in str(error) else "a key, or a plain number"
        hint = "static=(...) proves each size of a dimension as it comes; a cache keyed by sizes is no part of a proof"
        unknown = Unprovable(f"`{name}` uses a size as {told} here.", source, Goal(hint=hint))
        unknown.names = tuple(world.names_in(sizes_in(place))) if place is not None else ()
        return unknown
    return None


def _called(recorder: Recorder) -> str:
    return recorder.call.name if recorder.call else ""


def is_unprovable(error: Exception) -> bool:
    """Whether no other sizes would help."""
    kinds = GuardOnDataDependentSymNode | DataDependentOutputException | DynamicOutputShapeException | Unprovable
    return isinstance(error, kinds) and not getattr(error, "assigns", False)


def _users_own(error: Exception, name: str, place: Place | None, world: World) -> Exception:
    """A failed `assert` about sizes is a goal, as is a result unpacked into too many names; the rest is theirs."""
    said = _named(f"{type(error).__name__}: {error}".removesuffix(": "), world)
    source = place.source() if place else None
    if isinstance(error, ValueError) and "to unpack" in str(error):
        return ProofError(f"`{name}` is not well-shaped.", source, Goal(said=str(error)))
    asked = world.env.asked[-1] if world.env.asked else None
    if isinstance(error, AssertionError | IndexError | ZeroDivisionError) and source is not None:
        near = asked is not None and asked.source is not None and asked.source.file == source.file
        if not near or asked is None or asked.source is None or not 0 <= source.line - asked.source.line <= _NEAR:
            return ProofError(f"`{name}` refuses some sizes itself.", source, Goal(raised=said))
    if asked is None or asked.source is None or source is None or not isinstance(error, AssertionError | ValueError):
        return error.with_traceback(_user_part(error))
    if asked.source.file != source.file or not 0 <= source.line - asked.source.line <= _NEAR:
        return error.with_traceback(_user_part(error))
    equation = world.show(sympy.Not(asked.fact)).replace("==", "=")
    return ProofError(f"`{name}` refuses some sizes itself.", asked.source, Goal(equation=equation, raised=said))


def _not_well_shaped(
    error: Exception, call: Call, world: World, setting: Setting, tensors: Sequence[Tensor]
) -> ProofError:
    source = call.place.source() if call.place else None
    sides = lacking(world)  # before the search for a hint asks more
    found = ProofError(f"`{setting.signature.name}` is not well-shaped.", source,
                       _goal(error, call, world, setting, tensors))  # fmt: skip
    found.lacking = sides
    if isinstance(error, Mismatch) and len(error.between) == 2:
        one, other = error.between
        found.between = _terms(one.shape, world), _terms(other.shape, world)
    return found


def _terms(sizes: Sequence[Any], world: World) -> tuple[Any, ...]:
    return tuple(None if size is None else world.term(size) for size in sizes)


def _explain_result(error: ResultMismatch, name: str, recorder: Recorder) -> ProofError:
    place = recorder.call.place if recorder.call else None
    line = place.source() if place else None
    source = Source(line.file, line.line, line.text) if line else None
    title = f"`{name}` does not return what it declares."
    hint = _REMEDIES.get(_called(recorder), _COUNT) if OF_DATA in error.actual else ""
    goal = Goal("result", f"{error.actual}, declared {error.declared}", error.goal, hint=error.hint or hint)
    return ProofError(title, source, goal)


def _from_torch(error: Exception) -> bool:
    """Raised below the user's frames, by torch, rather than by the user's own `raise`."""
    traceback, last = error.__traceback__, None
    while traceback is not None:
        last, traceback = traceback, traceback.tb_next
    place = place_of_traceback(error.__traceback__)
    return isinstance(error, Mismatch) or (last is not None and place is not None and last.tb_frame is not place.frame)


def _user_part(error: Exception) -> Any:
    """The traceback from the user's first frame on."""
    traceback, ours = error.__traceback__, True
    while traceback is not None:
        users = is_users(traceback.tb_frame)
        if users and not ours:
            return traceback
        ours = ours and users  # the caller's own frames above `prove` come first
        traceback = traceback.tb_next
    return error.__traceback__


def _goal(error: Exception, call: Call, world: World, setting: Setting, tensors: Sequence[Tensor]) -> Goal:
    assert call.place is not None
    raw = getattr(call.function, "__name__", "")
    written = operands_of(call.place, raw, call.args, call.kwargs)
    operands, texts = [operand.tensor for operand in written], [operand.text for operand in written]
    shapes = [shape_text(operand, world) for operand in operands]
    labelled = [f"{_short(t)} : {s}" if t else s for t, s in zip(texts, shapes, strict=True)]
    symbol = f"   {SYMBOLS[call.name]}   " if call.name in SYMBOLS and len(operands) == 2 else ", "
    wanted = _named(error.goal, world) if isinstance(error, Mismatch) else equation(call, operands, world)
    said = "" if wanted else _named(first_line(error), world)
    if said.startswith("Cannot view a tensor"):
        said = "view needs axes that are adjacent in memory, and these are not"
    misplaced = isinstance(error, Misplaced)
    silent = misplaced or (isinstance(error, Mismatch) and "broadcast" in str(error))
    if misplaced:
        hint = hint_for_view(call, written, world, setting)
    else:
        tried = silent or not isinstance(error, Mismatch)
        hint = hint_for(call, written, world, setting, silent) if tried else ""
    return Goal(
        operation=call.name,
        operands=symbol.join(labelled),
        equation=wanted or ("" if said.startswith("view needs") else last_answer(world)),
        said=_named(str(error), world) if isinstance(error, Mismatch) and not silent else said,
        silent=_named(str(error), world) if silent else "",
        context=tuple(_context([text for text in texts if text], call.place, world, setting, tensors)),
        hint=hint,
    )


def _short(text: str) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= _LONGEST else f"{flat[: _LONGEST - 3]}..."


def _context(
    texts: Sequence[str], place: Place, world: World, setting: Setting, tensors: Sequence[Tensor]
) -> Iterator[tuple[str, str, str]]:
    entries = {id(t): (i, entry) for i, (t, entry) in enumerate(zip(tensors, setting.signature.entries, strict=True))}
    seen: set[int] = set()
    found: list[tuple[int, tuple[str, str, str]]] = []
    for text, tensor in tensors_in(list(texts), place.frame):
        if id(tensor) in seen:
            continue
        seen.add(id(tensor))
        if id(tensor) in entries:
            position, entry = entries[id(tensor)]
            where = f"declared at {Source(*entry.origin)}" if entry.origin else ""
            found.append((position, (entry.path, shape_text(tensor, world), where)))
        else:
            line = assignment_line(place.frame, text, place.line + 1) if text.isidentifier() else None
            found.append(
                (len(entries), (text, shape_text(tensor, world), f"from {Source(place.file, line)}" if line else ""))
            )
    yield from (row for _, row in sorted(found, key=lambda pair: pair[0]))


def _named(message: str, world: World) -> str:
    """torch's words with its symbols in the user's names."""
    for symbol, name in sorted(world.symbols.items(), key=lambda pair: -len(str(pair[0]))):
        message = message.replace(str(symbol), name)
    return message
