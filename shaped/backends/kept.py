"""A program that is kept: what was proved and compiled, in a file that another process starts from.

The file has what a step needs: which parameters are used, the batches that were admitted, where the loss reads from
outside and what was there, and the compiled code of each executor with the state and the rule that it is for. It has no
code of the user's: loss and parameters are given again, and the file is taken only where all that could change what was
proved or compiled is as it was: all that the code reaches (`reach.py`), the files it stands in, versions, the machine
and the settings of torch (`surroundings.py`). A new batch, another value outside or another rule is proved and compiled
as ever, and the first batch of each executor is held against eager as ever.
"""

import hashlib
import math
import os
import sys
import types
from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load, save
from torch import Tensor
from torch.fx import Graph, GraphModule, symbolic_trace

from shaped.backends import archive
from shaped.backends.bytecode import is_installed, is_library
from shaped.backends.cases import AdmittedCase, Traced
from shaped.backends.executors import CompileError, Executor, Key, Lowered
from shaped.backends.kernels import KeptCode, Unkeepable, taken_apart
from shaped.backends.reach import Reach, Untold, named
from shaped.backends.samples import FACTOR, CountGraph
from shaped.backends.step import Runner
from shaped.backends.surroundings import OWN, sources, surroundings
from shaped.errors import StateError, listing
from shaped.proof.reads import MISSING, Read
from shaped.shapes import Signature

if TYPE_CHECKING:
    from shaped.backends.program import Program

_FORMAT = 1
_DIGEST = 24  # characters of one
_NOT_IN_CODE = ("max_executors", "capture", "verify", "save_frozen")  # options that change neither proof nor code
_IN_GRAPHS = {
    "device": torch.device,
    "inf": math.inf,
    "nan": math.nan,
    "NoneType": type(None),
}  # names in a graph's code
Made = tuple[AdmittedCase, Hashable, Runner, Sequence[Tensor]]  # as `Compiled.made` gives them


class KeptProgram:
    """A program as it was read from a file, bound to a loss and parameters of this process.

    Args:
        path: The file.
        loss, params: As they are given to a trainer.
        options: Of the trainer.

    Raises:
        StateError: It does not fit, is damaged, or cannot be read; the message says what differs.
    """

    def __init__(self, path: str | os.PathLike[str], loss: Any, params: Any, options: Mapping[str, Any]) -> None:
        self._path = Path(path)
        try:
            about, self._members = archive.read(self._path)
            if about["format"] != _FORMAT:
                raise ValueError(f"it is of format {about['format']}, and this library reads {_FORMAT}")
            self._about = about
            self.unused, self.writes = tuple(about["unused"]), tuple(about["writes"])
            self._reach = self._fitting(loss, params, options)
            self._reads = [self._read(told) for told in about["reads"]]
        except (OSError, ValueError) as error:
            raise self._refused(str(error)) from None
        except (KeyError, TypeError, AttributeError, IndexError) as error:
            raise self._refused(f"it is damaged, or no kept program: {error!r}") from None
        self._cases: dict[AdmittedCase, int] = {}

    def _refused(self, why: str) -> StateError:
        return StateError(f"the kept program `{self._path}` is not used: {why}")

    def _fitting(self, loss: Any, params: Any, options: Mapping[str, Any]) -> Reach:
        """What the program reaches now, which is what it reached when it was kept."""
        _same(self._about["surroundings"], surroundings())
        _same(self._about["sources"], sources([*self._about["modules"]]))
        try:
            reach = _reach(loss, params, options)
        except Untold as error:
            raise ValueError(str(error)) from None
        now, then = reach.lines, self._members["reach"].decode().split("\n")
        for number, (old, new) in enumerate(zip(then, now, strict=False)):
            if old != new:
                raise ValueError(_differs(old, new, number))
        if len(now) != len(then):
            raise ValueError(f"the program reaches {len(now)} things, and {len(then)} when it was kept")
        if [*reach.modules] != self._about["modules"]:
            raise ValueError("the program's code stands in other files than when it was kept")
        return reach

    def begin(self, program: "Program") -> None:
        """Give a program what it would have proved: its batches, and what it watches outside."""
        about, inputs = self._about, program.inputs
        if about["signature"] != _spelled(program.signature):
            raise self._refused("the signature is another")
        program.inner = about["inner"]
        program.outside.now.restore(self._reads)
        program.outside.now.codes |= {
            (code, "") for code in self._reach.codes
        }  # what is replaced later is another program
        for number, told in enumerate(about["cases"]):
            key: tuple[Any, ...] = tuple(
                (torch.Size(shape), getattr(torch, dtype), program.params.device, torch.strided)
                for shape, dtype in told["inputs"]
            )
            key += tuple(told["training"])
            outside = tuple(self._reads[i][0] for i in told["outside"])
            case = AdmittedCase(
                *(told["sizes"], key, told["samples"], tuple(inputs), _sketched(told["sketch"])),
                _lazily(program, key, len(inputs), [read.text for read in outside]),
                apart=told["apart"],
                outside=outside,
                world=program.outside.now.number,
            )
            self._cases[case] = number
            program.outside.now.cases[key] = case

    def executor(self, key: Key, case: AdmittedCase, layout: Hashable, state: Sequence[Tensor]) -> Lowered | None:
        """The code for a batch and a state, where it was kept."""
        number = self._cases.get(case)
        if number is None:
            return None
        wanted = {"mode": key.mode, "case": number, "state": _metas(state)}
        for told in self._about["executors"]:
            if all(told[name] == value for name, value in wanted.items()) and told["layout"] == _digest_of(layout):
                kernels = self._kernels(told["code"])
                return Lowered(kernels.load(), "kept", code=kernels)
        return None

    def _kernels(self, name: str) -> KeptCode:
        source = self._members[f"{name}.py"].decode()
        libraries = {d: self._members[f"{d}.so"] for d in self._about["libraries"][name]}
        constants = load(self._members[f"{name}.safetensors"]) if f"{name}.safetensors" in self._members else {}
        return KeptCode(source, libraries, constants)

    # -- what is read from outside ---------------------------------------------------------------------------------

    _found: list[Any]

    def _read(self, told: Mapping[str, Any]) -> tuple[Read, bool]:
        """A read with what is there now, which is what was there."""
        if told["number"] == 0:
            self._found = []
        parent, own = told["parent"], told["own"]
        owner = self._owner(told["owner"]) if parent < 0 else self._found[parent]
        if parent >= 0 and own:
            owner = getattr(owner, "__dict__", {})
        key = told["key"]
        value = Read(told["kind"], owner, key, None).now()
        self._found.append(value)
        if told["watched"] and _token(self._reach, value) != told["token"]:
            raise ValueError(f"`{told['text']}`, which the loss reads, is not what it was")
        proved = (value.shape, value.dtype, value.device) if isinstance(value, Tensor) else None
        first = value if proved else None
        made = Read(told["kind"], owner, key, value, parent, own, told["text"], first, proved)
        return made, told["watched"]

    def _owner(self, told: Sequence[Any]) -> Any:
        kind, *where = told
        if kind == "line":
            return self._reach.things[where[0]]
        if kind == "environment":
            return os.environ
        module = sys.modules.get(where[0])
        if module is None:
            raise ValueError(f"`{where[0]}` is not imported")
        if kind == "module":
            return vars(module)
        found: Any = module
        for part in where[1].split("."):
            found = getattr(found, part)
        return found


def keep_program(path: str | os.PathLike[str], program: "Program", made: Sequence[Made], given: Any) -> list[str]:
    """Write a program and its executors to a file. Returns what was left out, with the reason.

    Args:
        path: The file.
        program: What is kept.
        made: Its executors, each with its batch.
        given: Loss, parameters and options as the trainer was given them.

    Raises:
        ValueError: It cannot be kept; the message says why. OSError: The file cannot be written.
    """
    try:
        _refuse(program, given[2])
        world = program.outside.now
        reach = _reach(*given)
        _refuse_unread(world.codes, reach)
        reads = [_told(i, read, watched, reach) for i, (read, watched) in enumerate(world.places())]
    except (Unkeepable, Untold) as error:
        raise ValueError(f"`{program.signature.name}` is not kept: {error}") from None
    members: dict[str, bytes] = {"reach": "\n".join(reach.lines).encode()}
    cases: dict[AdmittedCase, dict[str, Any]] = {}
    executors: list[dict[str, Any]] = []
    libraries: dict[str, list[str]] = {}
    left: list[str] = []
    for case, layout, runner, state in made:
        if case.world != world.number:
            continue
        executor = runner.executor
        try:
            code = _code(executor, case)
            told = cases.get(case) or _told_case(case, program, world.places())
            under = _digest_of(layout)
        except (Unkeepable, Untold) as error:
            left.append(f"{executor.mode} at {executor.sizes}: {error}")
            continue
        cases[case] = told
        name = f"code-{len(libraries)}"
        libraries[name] = [*code.libraries]
        members |= {f"{name}.py": code.source.encode()}
        members |= {f"{d}.so": content for d, content in code.libraries.items()}
        if code.constants:
            members[f"{name}.safetensors"] = save({n: t.contiguous() for n, t in code.constants.items()})
        at = [*cases].index(case)
        where = {"mode": executor.mode, "case": at, "layout": under, "state": _metas(state)}
        executors.append({**where, "code": name})
    if not executors:
        why = "; ".join(left) or "nothing was compiled and held against eager as yet: take a step first"
        raise ValueError(f"`{program.signature.name}` is not kept: {why}")
    about = {"format": _FORMAT, "signature": _spelled(program.signature), "inner": program.inner}
    about |= {"unused": [*program.unused], "writes": [program.params.entries[i].path for i in program.writes]}
    about |= {"surroundings": surroundings(), "modules": [*reach.modules], "sources": sources([*reach.modules])}
    about |= {"reads": reads, "cases": [*cases.values()], "executors": executors, "libraries": libraries}
    archive.write(Path(path), about, members)
    return left


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
        if not (code in reach.codes or is_installed(file) or file.startswith(str(OWN)) or generated):
            raise Unkeepable(
                f"it runs `{code.co_qualname}` ({file}:{code.co_firstlineno}), which no code that it reaches names"
            )


def _reach(loss: Any, params: Any, options: Mapping[str, Any]) -> Reach:
    """All that a trainer's program reaches."""
    given = {name: value for name, value in options.items() if name not in _NOT_IN_CODE}
    return Reach({_name_of(loss): loss, "params": params, "options": given})


def _name_of(loss: Any) -> str:
    return str(getattr(loss, "__name__", "loss"))


def _told(number: int, read: Read, watched: bool, reach: Reach) -> dict[str, Any]:
    """A read, for another process."""
    owner = _address(read, reach) if read.parent < 0 else None
    token = _token(reach, read.value) if watched else ""
    where = {"number": number, "kind": read.kind, "owner": owner, "key": _encoded(read), "parent": read.parent}
    return {**where, "own": read.own, "text": read.text, "watched": watched, "token": token}


def _token(reach: Reach, value: Any) -> str:
    return "missing" if value is MISSING else reach.token(value)


def _address(read: Read, reach: Reach) -> list[Any]:
    """Where another process finds the owner of a read."""
    owner = read.owner
    if id(owner) in reach.numbers:
        return ["line", reach.numbers[id(owner)]]
    if owner is os.environ:
        return ["environment"]
    if isinstance(owner, dict):
        name = owner.get("__name__")
        if isinstance(name, str) and name in sys.modules and vars(sys.modules[name]) is owner:
            return ["module", name]
    if isinstance(owner, type | types.FunctionType):
        found: Any = sys.modules.get(owner.__module__)
        for part in owner.__qualname__.split("."):
            found = getattr(found, part, None)
        if found is owner:
            return ["named", owner.__module__, owner.__qualname__]
    raise Unkeepable(f"it reads `{read.text}` in a {named(type(owner))} that is not found again in another process")


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
    if executor.draws is not None:
        raise Unkeepable("it draws at random")
    if executor.code is None:
        raise Unkeepable("there is no C++ compiler, so that it has no code")
    return executor.code if isinstance(executor.code, KeptCode) else taken_apart(executor.code)


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
        "outside": [at[id(read)] for read in case.outside],
        "sketch": _sketch(case.sketch),
    }


# -- a graph's outline -------------------------------------------------------------------------------------------------


def _sketch(graph: GraphModule) -> dict[str, Any]:
    """What is asked of a graph before the first batch was held: its inputs, the dtypes in it, whether values count."""
    values = [node.meta.get("val") for node in graph.graph.nodes]
    dtypes = {str(t.dtype).removeprefix("torch.") for v in values for t in (v if isinstance(v, tuple | list) else [v])
              if isinstance(t, Tensor) and t.is_floating_point()}  # fmt: skip
    inputs = sum(node.op == "placeholder" for node in graph.graph.nodes)
    counts = FACTOR in graph.meta and graph.meta[FACTOR] is None
    told = {"inputs": inputs, "dtypes": sorted(dtypes), "by_sizes": counts}
    return {**told, "factor": _spelled_out(graph.meta.get(FACTOR))}


def _spelled_out(factor: CountGraph | None) -> dict[str, Any] | None:
    """What values say of a batch's count, as Python; None where it names more than torch's operations."""
    if factor is None or factor.function is not None or any(n.op == "get_attr" for n in factor.graph.graph.nodes):
        return None
    code = factor.graph.graph.python_code("self")
    if "pytree" in code.src or not {*code.globals} <= {*_IN_GRAPHS, "torch", "pytree", "fx_pytree"}:
        return None
    return {"source": code.src.replace("forward(self, ", "forward(", 1), "share": factor.share}


def _sketched(told: Mapping[str, Any]) -> GraphModule:
    graph = Graph()
    nodes = [graph.placeholder(f"input_{i}") for i in range(told["inputs"])]
    graph.output(())
    for node, dtype in zip(nodes, told["dtypes"], strict=False):
        node.meta["val"] = torch.empty(0, dtype=getattr(torch, dtype))
    made = GraphModule(torch.nn.Module(), graph)
    if told["by_sizes"]:
        made.meta[FACTOR] = None
    elif told["factor"]:
        space: dict[str, Any] = {"torch": torch, **_IN_GRAPHS}
        exec(compile(told["factor"]["source"], "<a kept program>", "exec"), space)
        traced = symbolic_trace(space["forward"])
        made.meta[FACTOR] = CountGraph(traced, None, told["factor"]["share"])
    return made


def _lazily(program: "Program", key: tuple[Any, ...], inputs: int, outside: list[str]) -> Callable[[], Traced]:
    """Proves and admits a batch like one that was kept, once it is asked for."""

    @cache
    def traced() -> Traced:
        like = [torch.empty(shape, dtype=dtype, device=device) for shape, dtype, device, _ in key[:inputs]]
        real = program.admitted(like, key)
        if real.refusal or [read.text for read in real.outside] != outside:
            raise CompileError(
                f"`{program.signature.name}` was kept as another program than it is: make a trainer without it"
            )
        return real.proof, real.graph

    return traced


# -- comparing ---------------------------------------------------------------------------------------------------------


def _same(then: Mapping[str, str], now: Mapping[str, str]) -> None:
    differ = [name for name in {**then, **now} if then.get(name) != now.get(name)]
    if differ:
        old, new = (told.get(differ[0], "not there") for told in (then, now))
        short = len(old) + len(new) < 80 and " " not in old + new and len(old) != _DIGEST
        said = f" ({old} then, {new} now)" if short else ""
        raise ValueError(f"{listing(differ)} {'is' if len(differ) == 1 else 'are'} not as when it was kept{said}")


def _differs(old: str, new: str, number: int) -> str:
    (then, what), (now, other) = old.split(": ", 1), new.split(": ", 1)
    if then != now:
        return f"the program reaches `{now}` where it reached `{then}` when it was kept"
    plain = all(part.split(" ")[0] in ("int", "float", "bool", "NoneType") for part in (what, other))
    said = f": {what.split(' ', 1)[-1]} then, {other.split(' ', 1)[-1]} now" if plain else ""
    return f"`{now}` is not as when it was kept{said}"


def _metas(state: Sequence[Tensor]) -> list[Any]:
    return [[[*t.shape], [*t.stride()], str(t.dtype)] for t in state]


def _digest_of(layout: Hashable) -> str:
    """What lowered code takes for granted, in a word: strides, the groups of the optimizer, and their rules."""
    return hashlib.sha256("\n".join(Reach({"layout": layout}).lines).encode()).hexdigest()


def _spelled(signature: Signature) -> str:
    return f"{signature} {[(e.path, e.spec.quoted) for e in signature.entries]}"
