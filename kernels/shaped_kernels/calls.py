"""What a step is asked to do: rules over lists of tensors, and what is fused around them."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from .flat import flat_view
from .lists import TensorLists
from .rule import Rule


@dataclass(frozen=True)
class Extras:
    """What is fused around one step; the defaults are nothing.

    Attributes:
        max_norm: Gradients are scaled down so that the norm of all of them is at most this.
        skip_nonfinite: A step with an infinite or NaN gradient changes nothing.
        ema_decay: Share of each average kept per step; the lists must have averages then.
        zero_grads: Leave zeros in the gradients.
        grad_scale: One element; gradients are divided by it.
        found_inf: One element; the step changes nothing if it is not zero.
        norm: The norm of all gradients as they are, where it is known already: shards on many devices.
        keep: Gradients are not written, whatever they are multiplied by; `zero_grads` zeroes them all the same.
    """

    max_norm: float | None = None
    skip_nonfinite: bool = False
    ema_decay: float | None = None
    zero_grads: bool = False
    grad_scale: Tensor | None = None
    found_inf: Tensor | None = None
    norm: Tensor | None = None
    keep: bool = False

    @property
    def measures(self) -> bool:
        """Whether the gradients must be read before the step."""
        return self.max_norm is not None or self.skip_nonfinite

    @property
    def looks_at_all(self) -> bool:
        """Whether a norm or an average over all tensors is taken beside the rule."""
        return self.measures or self.ema_decay is not None


NOTHING = Extras()
ONLY_KEEP = Extras(keep=True)  # by identity: most steps


@dataclass
class RuleCall:
    """One rule over lists that are known to be good; making it checks the gradients, and changes nothing.

    Attributes:
        rule: Which.
        lists: Parameters and state.
        grads: One gradient for each parameter; afterwards, laid out as `lists.admit` does.
        flat: The lists as flat tensors, where that pays.
        walked: The gradients as the torch path walks them: `grads`, or one flat tensor.
        scalars: The rule's numbers, checked.
        step: Steps taken so far, 0-dim; advanced by the step. On the parameters' device on the triton path.
        lr: A learning rate on the lists' device, which replaces that of `scalars` without being read by the
            host; on the triton path.
        gather: Copy what does not lie flat together, if it is small. A norm or an average over all tensors repays
            that; the rule alone does not, whose operator takes a list as quickly.

    Raises:
        ValueError: Some gradients do not fit; the message names every index and what is wrong.
    """

    rule: Rule
    lists: TensorLists
    grads: Sequence[Tensor]
    scalars: Sequence[float]
    step: Tensor
    lr: Tensor | None = None
    gather: bool = False

    def __post_init__(self) -> None:
        together = self.rule.store == "nearest" and self.rule.elementwise
        self.flat = flat_view(self.lists, self.gather) if together else None
        gathered = None if self.flat is None else self.flat.admit(self.grads)
        if gathered is None:
            self.grads = self.lists.admit(self.grads)
            gathered = None if self.flat is None else self.flat.admit(self.grads)
        if gathered is None:
            self.flat = None
        self.walked = list(self.grads) if gathered is None else [gathered]


def shared(grads: Sequence[Tensor]) -> bool:
    """Say whether two gradients lie in the same memory, as those of `a + b` may."""
    pointers = [g.data_ptr() for g in grads if g.numel()]
    return len(set(pointers)) < len(pointers)
