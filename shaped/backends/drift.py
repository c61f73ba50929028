"""What all ranks have alike, and a rank's own code may change between two steps: told to the others in each step.

    edited      parameters, buffers and tensors from outside that were written into since the last step, as torch's
                version counters tell, and replaced state of optimizers: found in the next step
    looked at   some 1,000 entries of one tensor a step, in turn, for moments, whose counters would cost as much as all
                else here, and for what torch does not count, such as writes through `.data`; on a GPU, where looking
                waits for the device, in every 16th step
    numbers     plain values that the loss and `samples=` read from outside, and modules' train() and eval()

A checksum of it goes into the mark of a step's agreement (`Exchange.mark`). Where marks differ no step is taken, and
the ranks compare everything: what is the same after all goes on; what differs by rounding alone, as on ranks that run
other code for one update, becomes rank 0's; anything else is an error.
"""

import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, Protocol

import torch
from torch import Tensor

from shaped.backends.outside import Outside
from shaped.optim import FusedOptimizer
from shaped.optim.foreign import own
from shaped.proof.reads import ATTRIBUTE, CELL, CONTEXT, ITEM, MISSING, PLAIN, Read
from shaped.ranks.exchange import Exchange

_version, _training = attrgetter("_version"), attrgetter("training")
_SIMPLE = (bool, int, float, complex, str, type(None))
_ENTRIES = 1000  # of a tensor that are looked at
_SEVERAL = 4  # edited tensors that are looked at in one step
_RARELY = 16  # steps between looks on a GPU
_SPACED = 64  # steps between looks, at most, on ranks that round otherwise


class Waiting(Protocol):
    """What knows of gradients that wait: `Counters`."""

    waiting: int

    @property
    def means(self) -> list[Tensor]: ...


@dataclass
class Differing:
    """What ranks have otherwise.

    Attributes:
        names: Which tensors, and other entries.
        rank: One that differs from rank 0.
        writers: Ranks that wrote into some of them between steps.
    """

    names: list[str]
    rank: int
    writers: list[int]


class Drift:
    """What this rank has that all have alike.

    Args:
        names: Of the program's tensors.
        tensors: The program's tensors that all ranks have alike, by their place among all.
        used: Places of those that are updated.
        places: Of all tensors, by identity.
        outside: What the loss reads from outside.
        lifted: Where tensors lie that it reads there.
        modules: Whose mode says what the loss computes.
    """

    def __init__(
        self,
        names: Sequence[str],
        tensors: Mapping[int, Tensor],
        used: Sequence[int],
        places: Mapping[int, int],
        outside: Outside,
        lifted: Sequence[Read],
        modules: Sequence[Any],
    ) -> None:
        self._names, self._alike, self._used, self._places = names, tensors, used, places
        self._outside, self._lifted, self._modules = outside, lifted, modules
        self._reads = [(read, watched) for read, watched in outside.now.places()]
        self._values = [read.value for read, _ in self._reads]
        self._moves = outside.moves
        self._modes = tuple(map(_training, modules))
        self._said: dict[str, Any] = {}
        self._held: dict[str, Tensor] = {}
        self._order: list[str] = []
        self._counted: dict[str, Tensor] = {}  # of these, those whose versions are compared
        self._versions: list[int] = []
        self._of: Any = None  # whose state is held
        self._waiting: Waiting | None = None
        self._writes = -1
        self._begun = self._stale = False
        self._wrote: set[str] = set()  # what this rank's own code wrote into
        self._edited: set[str] = set()  # that, and what all ranks are to tell of
        self._every = 1
        self._turn = self._now = self._ahead = 0  # when all was held anew, the step, and by how many others are ahead

    # -- between steps -----------------------------------------------------------------------------------------------

    def note(self) -> None:
        """Note what was written into since the last step."""
        if self._begun:
            self._wrote.update(self._written())
            self._edited |= self._wrote

    def _written(self) -> Iterator[str]:
        now = list(map(_version, self._counted.values()))
        if now != self._versions:
            yield from (name for name, a, b in zip(self._counted, now, self._versions, strict=True) if a != b)

    def record(self) -> None:
        """Take everything as the step left it."""
        if self._begun:
            self._versions = list(map(_version, self._counted.values()))
            self._writes = _writes(self._of)

    def forget(self) -> None:
        """What is held may be other tensors from here on."""
        self._stale = True

    # -- in a step ---------------------------------------------------------------------------------------------------

    def said(self) -> dict[str, Any]:
        """What the loss is run by, in plain values: what changed of it; the same object where nothing did."""
        modes = tuple(map(_training, self._modules)) if self._modules else ()
        moved = self._outside.moves
        if self._said and moved == self._moves and modes == self._modes:
            return self._said
        self._moves, self._modes = moved, modes
        found: dict[str, Any] = {"what the loss reads": self._changed() if moved else "as it was"}
        if modes:
            mixed = f"a mix (checksum {zlib.crc32(bytes(modes)):08x})"
            found["the mode of the module"] = mixed if len(set(modes)) > 1 else "train()" if modes[0] else "eval()"
        self._said = found
        return found

    def _changed(self) -> str:
        """Plain values that are not as they were when the trainer was made."""
        now: list[Any] = []
        changed = []
        for (read, watched), before in zip(self._reads, self._values, strict=True):
            owner = read.owner
            if read.parent >= 0:
                owner = getattr(now[read.parent], "__dict__", {}) if read.own else now[read.parent]
            there = Read(read.kind, owner, read.key, None).now() if owner is not MISSING else MISSING
            now.append(there)
            plain = watched and read.kind in (PLAIN, ITEM, ATTRIBUTE, CELL, CONTEXT)
            if plain and type(there) in _SIMPLE and repr(there) != repr(before):
                changed.append(f"`{read.text}` = {there!r}")
        return ", ".join(dict.fromkeys(changed)) or "as it was"

    def told(self, optimizer: FusedOptimizer | None, waiting: Waiting, turn: int, begun: int) -> int:
        """A checksum of what was edited and of what is looked at in this step.

        Args:
            optimizer: Of the step; None where it takes gradients alone.
            waiting: Gradients that wait.
            turn: Number of the step, the same on all ranks.
            begun: A checksum to go on from.
        """
        turn = self._now = turn + self._ahead
        self._hold(optimizer, waiting, turn)
        names = self._order
        if not names:
            return begun
        looked = sorted(self._edited)
        told = zlib.crc32("|".join(looked).encode(), begun)
        if len(looked) > _SEVERAL:
            looked = [looked[(turn * _SEVERAL + i) % len(looked)] for i in range(_SEVERAL)]
        every = max(self._every, _RARELY if self._held[names[0]].device.type != "cpu" else 1)
        if turn % every == 0:
            looked.append(names[turn // every % len(names)])
        for name in looked:
            if (t := self._held.get(name)) is not None:
                told = zlib.crc32(_sample(t, turn // max(len(names), 1)), zlib.crc32(name.encode(), told))
        return told

    def _hold(self, optimizer: FusedOptimizer | None, waiting: Waiting, turn: int) -> None:
        """Hold what is there: anew where it was replaced, and each time that all was looked at."""
        other = optimizer is not None and (own(optimizer) is not self._of or _writes(self._of) != self._writes)
        if self._begun and not self._stale and not other and turn - self._turn < len(self._held):
            return
        before, self._turn, self._stale = self._held, turn, False
        self._of = own(optimizer) if optimizer is not None else self._of
        self._waiting = waiting
        self._take()
        if not self._begun:
            self._begun = True
            self._edited.update(self._held)
        self._wrote.update(name for name, t in self._held.items() if name in before and before[name] is not t)
        self._edited |= self._wrote
        self._edited.update(before.keys() ^ self._held.keys() if before else ())
        self._edited &= {*self._held, *before}
        self.record()

    def _take(self) -> None:
        """Hold what is there."""
        state = dict(self._of_optimizer())
        self._counted = {name: t for name, t in self._of_program() if not t.is_inference()}
        self._held = {**dict(self._of_program()), **state}
        self._order = list(self._held)

    def _of_program(self) -> Iterator[tuple[str, Tensor]]:
        waiting = self._waiting
        for i, t in self._alike.items():
            yield self._names[i], t
        if waiting is not None and waiting.waiting:
            for i, mean in zip(self._used, waiting.means, strict=True):
                if i in self._alike:
                    yield f"gradient of {self._names[i]} that waits", mean
        for read in self._lifted:
            if isinstance(read.value, Tensor) and read.value.layout == torch.strided:
                yield f"{read.text} from outside", read.value

    def _of_optimizer(self) -> Iterator[tuple[str, Tensor]]:
        for p, entry in getattr(self._of, "state", {}).items():
            i = self._places.get(id(p), -1)
            for name, value in entry.items() if i >= 0 else ():
                if isinstance(value, Tensor) and (i in self._alike or (name == "step" and not value.ndim)):
                    yield f"{name} of {self._names[i]}", value

    def agreed(self) -> None:
        """All ranks were alike in a step."""
        self._edited.clear()
        self._wrote.clear()

    @property
    def rounds(self) -> bool:
        """Whether ranks were found to round otherwise."""
        return self._every > 1

    # -- where marks differ ------------------------------------------------------------------------------------------

    def settle(self, exchange: Exchange) -> Differing | None:
        """Compare everything with all ranks; what differs by rounding alone becomes rank 0's. Collective.

        Returns:
            What is apart; None where a step can be taken.
        """
        self._take()
        sums = {name: zlib.crc32(_content(t)) for name, t in self._held.items()}
        found: list[tuple[set[str], dict[str, int], int]] = exchange.tell((self._wrote, sums, self._now))
        told, latest = [(of, sums) for of, sums, _ in found], max(now for *_, now in found)
        self._ahead, self._now, self._turn = self._ahead + latest - self._now, latest, latest
        wrote = set[str]().union(*(of for of, _ in told))
        first = told[0][1]
        differing = {name for _, of in told for name in {*first, *of} if first.get(name) != of.get(name)}
        one_sided = {name for name in wrote if any(name not in of for of, _ in told)}
        alone = {name for name in differing if any(name not in of for _, of in told)}
        rounded = not differing & (one_sided | alone) and self._rounded(exchange, sorted(differing))
        self._edited = wrote | differing
        if differing and not rounded:
            rank = next(r for r, (_, of) in enumerate(told) if any(of.get(n) != first.get(n) for n in differing))
            shown = [
                name
                for name in (*first, *sorted(alone))
                if name in differing and told[rank][1].get(name) != first.get(name)
            ]
            return Differing(
                list(dict.fromkeys(shown)), rank, [r for r, (of, _) in enumerate(told) if of & differing & one_sided]
            )
        if differing or not wrote:  # also where a look saw what a step had moved for a while, on some ranks alone
            self._every = min(2 * self._every, _SPACED)
        self.agreed()
        self.record()
        return None

    def _rounded(self, exchange: Exchange, names: Sequence[str]) -> bool:
        """Whether tensors differ by rounding alone on all ranks; they are rank 0's then."""
        with torch.no_grad():
            fine = True
            for name in names:
                mine, first = self._held[name], self._held[name].clone()
                exchange.spread([first])
                fine = fine and _near(mine, first)
            if not all(exchange.tell(fine)):
                return False
            exchange.spread([self._held[name] for name in names])
        return True


def _near(a: Tensor, b: Tensor) -> bool:
    """Whether half of the digits are the same."""
    if not a.is_floating_point() or not a.numel():
        return torch.equal(a, b)
    largest, apart = b.double().abs().amax(), (a.double() - b.double()).abs().amax()
    return bool(apart <= torch.finfo(a.dtype).eps ** 0.5 * largest)


def _writes(optimizer: Any) -> int:
    """How often the state of an optimizer was written into, as far as it counts that."""
    return int(getattr(getattr(getattr(optimizer, "state", None), "writes", None), "count", 0))


def _sample(t: Tensor, shift: int) -> bytes:
    """Up to some 1,000 entries of a tensor, spread over it."""
    flat = t.detach().reshape(-1)
    stride = max(flat.numel() // _ENTRIES, 1)
    return _content(flat[shift % stride :: stride])


def _content(t: Tensor) -> Any:
    flat = t.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data if flat.numel() else b""
