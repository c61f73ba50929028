"""Born's optimizer interface: get and set lr, the time step, and a flat state that holds all there is to resume.

m.{i}, v.{i}, top.{i}, velocity.{i}    tensors of parameter i, counted over all groups
t.{i}                                  its step count: Born leaves it out, and resumes wrongly
group.{j}                              the hyper-parameters of group j: Born leaves them out too
"""

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor

from shaped.arguments import keyed
from shaped_kernels.scalars import at_least_zero, number

# torch's names, and Born's.
_BORN = {"exp_avg": "m", "exp_avg_sq": "v", "max_exp_avg_sq": "top", "momentum_buffer": "velocity", "step": "t"}
_TORCH = {born: name for name, born in _BORN.items()}


class BornInterface:
    """What Born's optimizers have beyond `step` and `zero_grad`; a base of `FusedOptimizer`."""

    if TYPE_CHECKING:
        param_groups: list[dict[str, Any]]
        state: Any

        def state_dict(self) -> dict[str, Any]: ...
        @abstractmethod
        def load_state_dict(self, state_dict: Mapping[str, Any]) -> None: ...

    def get_lr(self) -> float:
        """The learning rate.

        Raises:
            ValueError: Groups differ; read `param_groups[i]["lr"]`.
        """
        rates = {number("lr", group["lr"]) for group in self.param_groups}
        if len(rates) != 1:
            raise ValueError(f"the groups have different learning rates, {sorted(rates)}: read param_groups[i]['lr']")
        return rates.pop()

    def set_lr(self, lr: float) -> None:
        """Set the learning rate of every group.

        Args:
            lr: Finite and >= 0; a group whose `lr` is a tensor keeps the tensor and takes the value.

        Raises:
            ValueError: `lr` is out of range; nothing has changed.
        """
        value = number("lr", lr)
        at_least_zero("lr", value)
        for group in self.param_groups:
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(value)
            else:
                group["lr"] = value

    @property
    def timestep(self) -> int:
        """Steps taken: the largest count of any parameter; 0 for SGD, which does not count."""
        return max((int(entry["step"]) for entry in self.state.values() if "step" in entry), default=0)

    def flat_state_dict(self) -> dict[str, Any]:
        """The whole state under flat names, as at the top of this file. Tensors are the live ones."""
        packed = self.state_dict()
        flat: dict[str, Any] = {
            f"{_BORN.get(name, name)}.{i}": value
            for i, entry in sorted(packed["state"].items())
            for name, value in entry.items()
        }
        for j, group in enumerate(packed["param_groups"]):
            flat[f"group.{j}"] = {**group, "params": list(group["params"])}
        return flat

    def load_flat_state_dict(self, flat: Mapping[str, Any]) -> None:
        """Load what `flat_state_dict` returned, all or nothing.

        Args:
            flat: Flat names to tensors; `group.{j}` may be left out where the hyper-parameters are to stay.

        Raises:
            ValueError: A name or a tensor does not fit; every difference is listed, nothing has changed.
        """
        unknown = [str(name) for name in keyed("flat", flat) if not _known(name)]
        if unknown:
            raise ValueError(
                f"the flat state has names that mean nothing here: {', '.join(unknown)}; nothing was changed"
            )
        mine = self.state_dict()["param_groups"]
        groups = [flat.get(f"group.{j}", group) for j, group in enumerate(mine)]
        extra = [name for name in flat if name.startswith("group.") and int(name[6:]) >= len(mine)]
        groups += [flat[name] for name in extra]
        state: dict[int, dict[str, Any]] = {}
        for name, number_, value in _entries(flat):
            state.setdefault(number_, {})[_TORCH.get(name, name)] = value
        self.load_state_dict({"state": state, "param_groups": groups})


def _known(name: Any) -> bool:
    if not isinstance(name, str):
        return False
    kind, _, i = name.partition(".")
    return i.isdigit() and (kind in (*_TORCH, "group", "ema", "low") or kind.endswith("_scale"))


def _entries(flat: Mapping[str, Any]) -> Iterator[tuple[str, int, Any]]:
    for name, value in flat.items():
        kind, _, i = name.partition(".")
        if kind != "group":
            yield kind, int(i), value
