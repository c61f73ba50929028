"""A program that is kept: what was proved and compiled, in a file that another process starts from.

The file has what a step needs: which parameters are used, the batches that were admitted, where the loss reads from
outside and what was there, and the compiled code of each executor with the state and the rule that it is for. It has no
code of the user's: loss and parameters are given again, and the file is taken only where all that could change what was
proved or compiled is as it was: all that the code reaches (`reach.py`), the files it stands in, versions, the machine
and the settings of torch (`surroundings.py`). A new batch, another value outside or another rule is proved and compiled
as ever, and the first batch of each executor is held against eager as ever.
"""

import os
from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load
from torch import Tensor

from shaped.backends import archive
from shaped.backends.addresses import found_again
from shaped.backends.cases import AdmittedCase, Traced
from shaped.backends.draws import Draws
from shaped.backends.executors import CompileError, Key, Lowered, tell
from shaped.backends.identity import FORMAT, digest_of, metas, reached, spelled, token_of
from shaped.backends.inductor import decomposed
from shaped.backends.kernels import KeptCode
from shaped.backends.outlines import outlined
from shaped.backends.reach import Reach, Untold
from shaped.backends.surroundings import sources, surroundings
from shaped.errors import StateError, first_line, listing
from shaped.proof.reads import Read

if TYPE_CHECKING:
    from shaped.backends.program import Program


_DIGEST = 24  # characters of one


class KeptProgram:
    """A program as it was read from a file, bound to a loss and parameters of this process.

    Args:
        path: The file.
        loss, params: As they are given to a trainer.
        options: Of the trainer.

    Attributes:
        path: The file.
        unused, writes: As a Proof has them.
        ours: Whether nobody else put the file there, so that one that proves wrong is removed and made anew.

    Raises:
        StateError: It does not fit, is damaged, or cannot be read; the message says what differs.
    """

    def __init__(self, path: str | os.PathLike[str], loss: Any, params: Any, options: Mapping[str, Any]) -> None:
        self.path, self.ours = Path(path), False
        try:
            about, self._members = archive.read(self.path)
            if about["format"] != FORMAT:
                raise ValueError(f"it is of format {about['format']}, and this library reads {FORMAT}")
            self._about = about
            self.unused, self.writes = tuple(about["unused"]), tuple(about["writes"])
            self._reach = self._fitting(loss, params, options)
            self._reads = [self._read(told) for told in about["reads"]]
        except (OSError, ValueError) as error:
            raise self._refused(str(error)) from None
        except (KeyError, TypeError, AttributeError, IndexError) as error:
            raise self._refused(f"it is damaged, or no kept program: {error!r}") from None
        self._world = -1  # of the program's values, in which this holds
        self._cases: dict[tuple[Any, ...], int] = {}  # by what a batch is admitted by

    def _refused(self, why: str) -> StateError:
        return StateError(f"the kept program `{self.path}` is not used: {why}")

    def _fitting(self, loss: Any, params: Any, options: Mapping[str, Any]) -> Reach:
        """What the program reaches now, which is what it reached when it was kept."""
        _same(self._about["surroundings"], surroundings())
        _same(self._about["sources"], sources([*self._about["modules"]]))
        try:
            reach = reached(loss, params, options)
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
        if about["signature"] != spelled(program.signature):
            raise self._refused("the signature is another")
        program.inner = about["inner"]
        program.outside.now.restore(self._reads)
        program.outside.now.codes |= {
            (code, "") for code in self._reach.codes
        }  # what is replaced later is another program
        self._bind(program)
        for key, told in zip(self._cases, about["cases"], strict=True):
            outside = tuple(self._reads[i][0] for i in told["outside"])
            case = AdmittedCase(
                *(told["sizes"], key, told["samples"], tuple(inputs), outlined(told["sketch"])),
                _lazily(program, key, len(inputs), [read.text for read in outside]),
                apart=told["apart"],
                outside=outside,
                world=program.outside.now.number,
                looks=told["looks"],
            )
            program.outside.now.cases[key] = case

    @property
    def content(self) -> tuple[Mapping[str, Any], Mapping[str, bytes]]:
        """What the file has, as `archive.read` gives it."""
        return self._about, self._members

    def _bind(self, program: "Program") -> None:
        """Note for which values and batches of a program this is."""
        self._world = program.outside.now.number
        for number, told in enumerate(self._about["cases"]):
            key: tuple[Any, ...] = tuple(
                (torch.Size(shape), getattr(torch, dtype), program.params.device, torch.strided)
                for shape, dtype in told["inputs"]
            )
            self._cases[key + tuple(told["training"])] = number

    def join(self, program: "Program") -> None:
        """Give a program that was proved in this process the code, and no proof.

        Raises:
            StateError: What was proved here is not what was kept.
        """
        about, names = self._about, [entry.path for entry in program.params.entries]
        here = [spelled(program.signature), program.inner, [*program.unused], [names[i] for i in program.writes]]
        if not program.outside.is_as_it_was():
            raise self._refused("what the loss reads is not what it was when the trainer was made")
        if here != [about["signature"], about["inner"], [*self.unused], [*self.writes]]:
            raise self._refused("something else was proved of it here")
        self._bind(program)
        program.kept = self

    def executor(self, key: Key, case: AdmittedCase, layout: Hashable, state: Sequence[Tensor]) -> Lowered | None:
        """The code for a batch and a state, where it was kept."""
        number = self._cases.get(case.key) if case.world == self._world else None
        if number is None or not self._is(self._about["cases"][number], case):
            return None
        wanted = {"mode": key.mode, "case": number, "state": metas(state)}
        for told in self._about["executors"]:
            if all(told[name] == value for name, value in wanted.items()) and told["layout"] == digest_of(layout):
                kernels = self._kernels(told["code"])
                try:
                    return Lowered(kernels.load(), "kept", draws=self._draws(told["draws"]), code=kernels)
                except CompileError as error:
                    if not self.ours:
                        raise
                    self.refuted()
                    tell(f"shaped: {first_line(error)}: it is compiled anew")
        return None

    def _draws(self, told: Mapping[str, Any] | None) -> Draws | None:
        if told is None:
            return None
        kernels = self._kernels(told["code"])
        return Draws(lambda: (kernels.load(), kernels), told["own"], decomposed)

    def refuted(self) -> None:
        """Something of it proved wrong: no other process is to take it up."""
        if self.ours:
            with suppress(OSError):
                os.unlink(self.path)

    def _is(self, told: Mapping[str, Any], case: AdmittedCase) -> bool:
        """Whether a batch was admitted as the one that was kept."""
        reads = [self._reads[i][0] for i in told["outside"]]
        alike = len(reads) == len(case.outside) and all(
            a.value is b.value for a, b in zip(reads, case.outside, strict=True)
        )
        return alike and (told["sizes"], told["samples"], told["apart"]) == (case.sizes, case.samples, case.apart)

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
        owner = found_again(told["owner"], self._reach) if parent < 0 else self._found[parent]
        if parent >= 0 and own:
            owner = getattr(owner, "__dict__", {})
        key = told["key"]
        value = Read(told["kind"], owner, key, None).now()
        self._found.append(value)
        if told["watched"] and token_of(self._reach, value) != told["token"]:
            raise ValueError(f"`{told['text']}`, which the loss reads, is not what it was")
        proved = (value.shape, value.dtype, value.device) if isinstance(value, Tensor) else None
        first = value if proved else None
        made = Read(told["kind"], owner, key, value, parent, own, told["text"], first, proved)
        return made, told["watched"]


def _lazily(program: "Program", key: tuple[Any, ...], inputs: int, outside: list[str]) -> Callable[[], Traced]:
    """Proves and admits a batch like one that was kept, once it is asked for."""

    @cache
    def traced() -> Traced:
        like = [torch.empty(shape, dtype=dtype, device=device) for shape, dtype, device, _ in key[:inputs]]
        real = program.admitted(like, key)
        if real.refusal or [read.text for read in real.outside] != outside:
            if program.kept is not None:
                program.kept.refuted()
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
