"""Parameters that lie in even flat parts over the ranks: cut, gathered and scattered, and what can step them."""

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.optim import Optimizer

from shaped.backends.turns import Turns
from shaped.optim import FusedOptimizer
from shaped.optim.foreign import Foreign, name_of, own
from shaped.ranks.exchange import Exchange
from shaped.ranks.layout import Placement


class ProgramOwner(Protocol):
    """The program that is run together."""

    tensors: list[Tensor]
    plain: list[Tensor]
    used: list[int]
    trainable: list[int]
    more: int

    @property
    def proof(self) -> Any: ...
    @property
    def params(self) -> Any: ...


class Parts(Turns):
    """What `Together` does about how parameters lie; see there for the attributes."""

    _program: ProgramOwner
    layouts: dict[int, Any]
    units: list[list[int]]

    @property
    def parted(self) -> bool:
        """Whether a rank has parts of some parameters."""
        return self.sharded

    @property
    def zero(self) -> int:
        """3 where a rank has flat parts of the parameters, 0 where it has not."""
        return 3 if self.sharded else 0

    @property
    def place(self) -> Any:
        """Which of the parts are this rank's."""
        return self.exchange.rank

    def is_part(self, index: int, value: Any) -> bool:
        """Whether a value is this rank's part of something of a parameter's shape."""
        layout = self.layouts.get(index) if self.sharded else None
        return layout is not None and isinstance(value, Tensor) and tuple(value.shape) == (layout.length,)

    def whole_shape(self, index: int) -> tuple[int, ...]:
        """The shape of a whole parameter."""
        layout = self.layouts.get(index) if self.parted else None
        return tuple(self._program.tensors[index].shape) if layout is None else layout.shape  # type: ignore[no-any-return]

    def cut(self) -> None:
        """Let each rank keep its parts alone; a parameter stays the same object, over other memory."""
        for i, layout in self.layouts.items() if self.parted else ():
            tensor = self._program.tensors[i]
            tensor.data = layout.cut(tensor.detach(), self.place)

    def take(self, optimizer: FusedOptimizer) -> None:
        """Take over an optimizer: it keeps this rank's parts of the state that it has.

        Raises:
            ValueError: It cannot step parameters as they lie.
        """
        self.refuse(optimizer)
        self._notice(own(optimizer))
        of = {id(self._program.tensors[i]): layout for i, layout in self.layouts.items() if self.parted}
        for p, entry in optimizer.state.items():
            layout = of.get(id(p))
            if layout is None:
                continue
            for name, value in entry.items():
                if name != "step" and isinstance(value, Tensor) and tuple(value.shape) == layout.shape:
                    entry[name] = layout.cut(value, self.place)

    def _notice(self, optimizer: Optimizer) -> None:
        """Notice what is loaded into an optimizer by itself."""

        def loaded(which: Optimizer) -> None:  # a function, which copies of an optimizer share
            if which is optimizer:
                self.note_loaded(f"{type(which).__name__}'s state")

        optimizer.register_load_state_dict_post_hook(loaded)

    @property
    def summing(self) -> Exchange:
        """The ranks that gradients are summed over, and among which flat parts lie."""
        return self.exchange

    def flat(self, index: int) -> Placement:
        """How a parameter lies in flat parts over those ranks."""
        return self.layouts[index]  # type: ignore[no-any-return]

    def gathered(self, unit: int, parts: Sequence[Tensor]) -> list[Tensor]:
        """The whole parameters of a unit."""
        members, size = self.units[unit], self.summing.size
        if len(parts) == 1:
            return [self.flat(members[0]).whole(self.summing.gather(parts[0]))]
        rows, lengths = self.summing.gather(torch.cat(list(parts))).view(size, -1), self._widths(members)
        each = torch.split(rows, lengths, 1)
        return [self.flat(i).whole(own.reshape(-1)) for i, own in zip(members, each, strict=True)]

    def _widths(self, members: Sequence[int]) -> list[int]:
        return [self.flat(i).length for i in members]

    def scattered(self, unit: int, weighed: Sequence[Tensor]) -> list[Tensor]:
        """This rank's parts of samples*gradient, summed over the ranks."""
        members, size = self.units[unit], self.summing.size
        flat = [self.flat(i).flat(g) for i, g in zip(members, weighed, strict=True)]
        if len(flat) == 1:
            return [self.summing.scatter(flat[0])]
        rows = torch.cat([one.view(size, -1) for one in flat], 1)
        return list(torch.split(self.summing.scatter(rows.reshape(-1)), self._widths(members)))

    def hollow(self, index: int, part: Tensor) -> Tensor:
        """A tensor of the whole's shape and dtype without values of its own."""
        return part.new_zeros(()).expand(self.flat(index).shape)

    def whole(self, index: int, part: Tensor) -> Tensor:
        """A whole tensor of an entry's layout from this rank's part; itself where there are no parts. Collective."""
        if not self.sharded or index not in self.layouts:
            return part
        with torch.no_grad():
            return self.layouts[index].whole(self.exchange.gather(part.detach())).clone()

    def wholes(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """All parameters whole at once."""
        found = list(tensors)
        for at, members in enumerate(self.units):
            for i, whole in zip(members, self.gathered(at, [tensors[i] for i in members]), strict=True):
                found[i] = whole
        return found

    def refuse(self, optimizer: FusedOptimizer) -> None:
        """Refuse an optimizer that cannot step parameters as they lie.

        Raises:
            ValueError: Naming what it does, and what to do.
        """
        name, options = type(optimizer).__name__, optimizer.options
        if not self.sharded:
            if options.store == "stochastic":
                raise ValueError(
                    f"{name} was made with store='stochastic', which rounds the same parameter otherwise on each rank: "
                    "use zero=3, where each part is on one rank alone, or store='split'"
                )
            return
        refuse_whole(optimizer, "with zero=3 a rank has parts of them", "zero=0")
        if options.moments == "8bit":
            raise ValueError(
                f"{name} was made with moments='8bit', whose scales are those of 256 neighbours, and with zero=3 a "
                "part may begin among them: use zero=0, or whole moments"
            )


def refuse_whole(optimizer: FusedOptimizer, parts: str, otherwise: str) -> None:
    """Refuse an optimizer that does not move each element by itself, where a rank has parts of the parameters.

    Args:
        optimizer: Of a trainer.
        parts: What a rank has, and why.
        otherwise: What lets it have whole ones.

    Raises:
        ValueError: Naming its rule, and what to do.
    """
    if isinstance(optimizer, Foreign):
        raise ValueError(
            f"the step of {name_of(optimizer.inner)} may look at whole parameters, and {parts}: use AdamW or another "
            f"of shaped.optim, or {otherwise}"
        )
    whole = [rule.name for rule in map(optimizer.rule_of, optimizer.param_groups) if not rule.elementwise]
    if whole:
        raise ValueError(
            f"{type(optimizer).__name__} steps by {whole[0]}, which looks at whole parameters, and {parts}: use AdamW "
            f"or another that moves each element by itself, or {otherwise}"
        )
