"""Writing a program that is kept: what was proved and compiled, taken apart into data, libraries and sources.

What is left out, or why nothing is kept, is said. `kept.py` reads it.
"""

import json
import os
import types
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save
from torch import Tensor

from shaped.backends import archive
from shaped.backends.addresses import Addresses
from shaped.backends.bytecode import is_library, is_of_project
from shaped.backends.cases import AdmittedCase
from shaped.backends.executors import Executor
from shaped.backends.identity import FORMAT, digest_of, metas, name_of, reached, spelled, token_of
from shaped.backends.kept import KeptProgram
from shaped.backends.kernels import KeptCode, Unkeepable, taken_apart
from shaped.backends.outlines import outline
from shaped.backends.reach import Reach, Untold, named
from shaped.backends.registered import own_operation
from shaped.backends.step import Runner
from shaped.backends.surroundings import sources, surroundings
from shaped.errors import listing
from shaped.proof.reads import WHOLE, Read, same

if TYPE_CHECKING:
    from shaped.backends.program import Program

_NO_CODE = {"code": "", "draws": None}
_MOST = 64  # executors in a file that an earlier one adds to
Made = tuple[AdmittedCase, Hashable, Runner, Sequence[Tensor]]  # as `Compiled.made` gives them


@dataclass
class Packed:
    """A program as it is written.

    Attributes:
        about, members: As `archive.write` takes them.
        left: What was compiled and is not in it, with the reason.
    """

    about: dict[str, Any]
    members: dict[str, bytes]
    left: list[str]

    @property
    def name(self) -> str:
        """By what a folder knows it: all that must be the same where it is taken up."""
        return name_of(self.about["surroundings"], self.about["sources"], self.members["reach"].decode())

    def take_along(self, before: KeptProgram) -> None:
        """Take what an earlier file of the same program has and this one has not."""
        about, plain = self.about, json.loads(json.dumps(self.about))
        old, _ = before.content
        if plain["reads"][: len(old["reads"])] != old["reads"]:
            return  # cases name them by number
        for told in old["executors"][: _MOST - len(about["executors"])]:
            case = old["cases"][told["case"]]
            if case not in plain["cases"]:
                plain["cases"].append(case)
                about["cases"].append(case)
            where = {**told, "case": plain["cases"].index(case)}
            if any({**one, **_NO_CODE} == {**where, **_NO_CODE} for one in plain["executors"]):
                continue
            where["code"] = self._take(told["code"], before)
            if told["draws"] is not None:
                where["draws"] = {**told["draws"], "code": self._take(told["draws"]["code"], before)}
            about["executors"].append(where)

    def _take(self, code: str, before: KeptProgram) -> str:
        """Take the generated code of that name from an earlier file; its name here."""
        old, members = before.content
        libraries = self.about["libraries"]
        name = f"code-{len(libraries)}"
        libraries[name] = old["libraries"][code]
        for end in (".py", ".safetensors"):
            if code + end in members:
                self.members[name + end] = members[code + end]
        self.members |= {f"{d}.so": members[f"{d}.so"] for d in old["libraries"][code]}
        return name


def keep_program(path: str | os.PathLike[str], program: "Program", made: Sequence[Made], given: Any) -> list[str]:
    """Write a program and its executors to a file. Returns what was left out, with the reason.

    Raises:
        ValueError: As `packed`. OSError: The file cannot be written.
    """
    content = packed(program, made, given)
    archive.write(Path(path), content.about, content.members)
    return content.left


def packed(program: "Program", made: Sequence[Made], given: Any) -> Packed:
    """A program and its executors.

    Args:
        program: What is kept.
        made: Its executors, each with its batch.
        given: Loss, parameters and options as the trainer was given them.

    Raises:
        ValueError: It cannot be kept; the message says why.
    """
    try:
        _refuse(program, given[2])
        world = program.outside.now
        reach = reached(*given)
        _refuse_unread(world.codes, reach)
        at = Addresses(reach, [read.value for read, _ in world.places()])
        reads = [_told(i, read, watched, reach, at) for i, (read, watched) in enumerate(world.places())]
    except (Unkeepable, Untold) as error:
        raise ValueError(f"`{program.signature.name}` is not kept: {error}") from None
    found = Packed({"executors": [], "libraries": {}}, {"reach": "\n".join(reach.lines).encode()}, [])
    cases: dict[AdmittedCase, dict[str, Any]] = {}
    for case, layout, runner, state in made:
        if case.world == world.number:
            _pack(found, cases, (case, layout, runner, state), program)
    if not cases:
        why = "; ".join(found.left) or "nothing was compiled and held against eager as yet: take a step first"
        raise ValueError(f"`{program.signature.name}` is not kept: {why}")
    about = {"format": FORMAT, "signature": spelled(program.signature), "inner": program.inner}
    about |= {"unused": [*program.unused], "writes": [program.params.entries[i].path for i in program.writes]}
    about |= {"surroundings": surroundings(), "modules": [*reach.modules], "sources": sources([*reach.modules])}
    found.about = about | {"reads": reads, "cases": [*cases.values()]} | found.about
    return found


def _pack(found: Packed, cases: dict[AdmittedCase, dict[str, Any]], made: Made, program: "Program") -> None:
    """Add an executor, or the reason why it is left out."""
    case, layout, runner, state = made
    executor = runner.executor
    try:
        code, drawing = _code(executor, case), _drawing(executor)
        told = cases.get(case) or _told_case(case, program, program.outside.now.places())
        under = digest_of(layout)
    except (Unkeepable, Untold) as error:
        found.left.append(f"{executor.mode} at {executor.sizes}: {error}")
        return
    cases[case] = told
    where = {"mode": executor.mode, "case": [*cases].index(case), "layout": under, "state": metas(state)}
    where |= {"code": _put(found, code), "draws": None}
    if executor.draws is not None and drawing is not None:
        where["draws"] = {"code": _put(found, drawing), "own": executor.draws.own}
    found.about["executors"].append(where)


def _put(found: Packed, code: KeptCode) -> str:
    """Add generated code under a name of its own."""
    libraries, members = found.about["libraries"], found.members
    name = f"code-{len(libraries)}"
    libraries[name] = [*code.libraries]
    members |= {f"{name}.py": code.source.encode()}
    members |= {f"{d}.so": content for d, content in code.libraries.items()}
    if code.constants:
        members[f"{name}.safetensors"] = save({n: t.contiguous() for n, t in code.constants.items()})
    return name


def _drawing(executor: Executor) -> KeptCode | None:
    """The code of its random numbers alone, by which the next process holds it against eager."""
    if executor.draws is None:
        return None
    code = executor.draws.code
    return code if isinstance(code, KeptCode) else taken_apart(code)


def _refuse(program: "Program", options: Mapping[str, Any]) -> None:
    """Refuse what is not kept as yet."""
    if program.together is not None:
        raise Unkeepable("a program on several ranks is not")
    if program.params.device.type != "cpu":
        raise Unkeepable(f"a program on {program.params.device} is not; one on a CPU is")
    given = {name: options[name] for name in ("strategy", "loss_scale") if options[name] is not None}
    given |= {"accumulate": options["accumulate"]} if options["accumulate"] > 1 else {}
    given |= {"samples": "a function"} if callable(options["samples"]) else {}
    if given:
        raise Unkeepable(f"a trainer with {listing([f'{name}={value}' for name, value in given.items()])} is not")
    if program.signature.axes or program.batch.optional:
        raise Unkeepable("one with `*axes` or with inputs that may be left out is not")


def _refuse_unread(codes: set[tuple[types.CodeType, str]], reach: Reach) -> None:
    """Refuse a program that ran code of the project's which is not found again from the loss."""
    for code, module in codes:
        file = code.co_filename
        generated = file.startswith("<") and module and is_library(module)  # by an installed package
        if code not in reach.codes and is_of_project(file) and not generated:
            raise Unkeepable(
                f"it runs `{code.co_qualname}` ({file}:{code.co_firstlineno}), which no code that it reaches names"
            )


def _told(number: int, read: Read, watched: bool, reach: Reach, at: Addresses) -> dict[str, Any]:
    """A read, for another process."""
    owner = at.of(read) if read.parent < 0 else None
    value = read.value
    if read.kind == WHOLE and same(value, now := read.now()):
        value = now  # with the program's own tensors, where the trace had others in their place
    token = token_of(reach, value) if watched else ""
    where = {"number": number, "kind": read.kind, "owner": owner, "key": _encoded(read), "parent": read.parent}
    return {**where, "own": read.own, "text": read.text, "watched": watched, "token": token}


def _encoded(read: Read) -> Any:
    if read.key is None or type(read.key) in (str, int, bool):
        return read.key
    raise Unkeepable(f"it reads `{read.text.split('[')[0]}` by keys that are {named(type(read.key))}")


def _code(executor: Executor, case: AdmittedCase) -> KeptCode:
    """The code of an executor, taken apart from the compiler."""
    if executor.wrong or not (executor.held or executor.calls):
        raise Unkeepable("it was not held against eager as yet")
    if executor.holds is not None:
        raise Unkeepable("it is for all sizes, of which a proof says where it is right")
    if executor.code is None:
        raise Unkeepable("there is no C++ compiler, so that it has no code")
    if isinstance(executor.code, KeptCode):
        return executor.code
    if own := own_operation(case.graph):
        raise Unkeepable(f"it calls {own}")
    return taken_apart(executor.code)


def _told_case(case: AdmittedCase, program: "Program", places: Sequence[tuple[Read, bool]]) -> dict[str, Any]:
    """An admitted batch, for another process."""
    count = len(program.inputs)
    if any(layout != torch.strided for _, _, _, layout in case.key[:count]):
        raise Unkeepable("an input is no strided tensor")
    at = {id(read): i for i, (read, _) in enumerate(places)}
    return {
        "inputs": [[[*shape], str(dtype).removeprefix("torch.")] for shape, dtype, _, _ in case.key[:count]],
        "training": [*case.key[count:]],
        "sizes": dict(case.sizes),
        "samples": case.samples,
        "apart": case.apart,
        "looks": case.looks,
        "outside": [at[id(read)] for read in case.outside],
        "sketch": outline(case.sketch),
    }
