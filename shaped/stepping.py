"""The steps of a trainer: by each update path, and by the optimizer that it was given."""

import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor

from shaped.arguments import number
from shaped.backends import Backend, TrainerOptions, not_finite
from shaped.errors import ShapeError
from shaped.optim import FusedOptimizer
from shaped.sharing import Sharing
from shaped.state import TrainingState


class Stepping(Sharing):
    """What a trainer does to its parameters."""

    _shared: TrainingState
    _options: TrainerOptions
    _backend: Backend

    def _together(self, forward: bool = False) -> AbstractContextManager[None]:
        """Around what all ranks call, so that an error of one is raised on all and none waits for it."""
        together = self._program.together
        return nullcontext() if together is None else together.watched(forward)

    def step(self, *inputs: Any, lr: float, **named: Any) -> Float[Tensor, ""]:
        """Take one step of gradient descent, p <- p - lr*g, and return the loss it was computed from.

        Args:
            inputs, named: The batch: a tensor, or a container of tensors, for each input of the signature, by position
                or by name. New sizes recompile.
            lr: Step size in parameter units per gradient unit; may change at every step.

        Raises:
            ShapeError: The batch breaks the signature. NonFiniteError: The loss or a gradient is not finite.
            ValueError: `lr` is negative or not finite. Nothing has changed in any of these cases.
        """
        return self._update("sgd", inputs, named, lr, {})

    def adam_step(
        self, *inputs: Any, lr: float, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8, **named: Any
    ) -> Float[Tensor, ""]:
        """Take one Adam step and return the loss it was computed from.

            m <- b1*m + (1 - b1)*g          c1 = 1 - b1**t,  t = 1, 2, ...
            v <- b2*v + (1 - b2)*g*g        c2 = 1 - b2**t
            p <- p - lr*(m/c1) / (sqrt(v/c2) + eps)

        Args:
            inputs, named: As for `step`.
            lr: Step size in parameter units per step (m/sqrt(v) has no unit); may change at every step.
            betas: Decay per step of the two moments. Fixed by the first call, as is `eps`.
            eps: Floor added to sqrt(v), so in gradient units.

        Raises:
            As for `step`, and ValueError where `betas` or `eps` differ from the first call's.

        Source: Kingma & Ba 2015, arXiv:1412.6980, as torch.optim.Adam computes it.
        """
        return self._update("adam", inputs, named, lr, {"betas": betas, "eps": eps})

    def adamw_step(
        self,
        *inputs: Any,
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        **named: Any,
    ) -> Float[Tensor, ""]:
        """Take one AdamW step and return the loss it was computed from.

            m <- b1*m + (1 - b1)*g          c1 = 1 - b1**t,  t = 1, 2, ...
            v <- b2*v + (1 - b2)*g*g        c2 = 1 - b2**t
            p <- p - lr*((m/c1) / (sqrt(v/c2) + eps) + weight_decay*p)

        Args:
            inputs, named: As for `step`.
            lr: Step size in parameter units per step (m/sqrt(v) has no unit); may change at every step.
            betas: Decay per step of the two moments; each remembers about 1/(1 - b) steps. Fixed by the first call.
            eps: Floor added to sqrt(v), so in gradient units. Fixed by the first call.
            weight_decay: Share of `p` removed per step and per unit of `lr`. Fixed by the first call.

        Returns:
            The loss before the update: shape (), in the loss function's unit, still on the device.

        Raises:
            As for `step`, and ValueError where a hyper-parameter differs from the first call's.

        Source: Loshchilov & Hutter 2019, arXiv:1711.05101, Algorithm 2; the decay is scaled by `lr`, as
        torch.optim.AdamW does and the paper does not.
        """
        given = {"betas": betas, "eps": eps, "weight_decay": weight_decay}
        return self._update("adamw", inputs, named, lr, given)

    def train_step(self, *inputs: Any, **named: Any) -> Float[Tensor, ""]:
        """Take one step with the optimizer given at construction; its groups say lr and all else at each call.

        Raises:
            As for `step`, and ValueError where no optimizer was given.
        """
        program = self._program
        if program.together is None:
            return self._take(self._shared.own_optimizer(), program.arrange(inputs, named))
        with self._together():
            return self._take(self._shared.own_optimizer(), program.arrange(inputs, named))

    def train_steps(self, batches: Iterable[Any]) -> Float[Tensor, " steps"]:
        """Take a step by `train_step` for each of several batches: the same numbers bit for bit, for less.

        In a list or a tuple nothing runs between two batches but these steps. So parameters, hyper-parameters and state
        are compared with what is compiled at the first two alone; batches, and what the loss reads from outside, at
        each. From any other iterable batches are drawn one by one, and all is compared at each.

        Args:
            batches: Each a tensor, a tuple or list of inputs, or a mapping from their names. Those of one size that
                were seen before cost least.

        Returns:
            The loss of each batch before its update, shape (steps,), still on the device.

        Raises:
            As for `train_step`, with a note that says how many batches were stepped: they stay so.
        """
        if isinstance(batches, Tensor | Mapping | str) or not isinstance(cast(object, batches), Iterable):
            raise ValueError(f"batches is a {type(batches).__name__}; it is a list, or any iterable, of batches")
        self._shared.own_optimizer()  # refused before a batch is drawn
        counters, losses = self._shared.counters, list[Tensor]()
        calls, alone = counters.calls, isinstance(batches, list | tuple)
        try:
            for batch in batches:
                inputs, named = _parts(batch)
                with self._together():
                    given = self._program.arrange(inputs, named)
                    # The first step makes the optimizer's state, and the second finds it.
                    losses.append(self._take(self._shared.own_optimizer(), given, alone and len(losses) > 1))
        except BaseException as error:
            error.add_note(f"train_steps: {counters.calls - calls} batches were stepped before this, and stay so")
            raise
        return torch.stack(losses) if losses else torch.zeros(0, device=self._program.params.device)

    @property
    def waiting(self) -> int:
        """Batches whose gradients wait for an update, of the `accumulate` that make one."""
        return self._shared.counters.waiting

    def step_waiting(self) -> int:
        """Take the update that gradients wait for now, with the mean over the samples that there are.

        Returns:
            How many batches were in it; 0 where none waits or they have no samples, and no parameter has moved.
        """
        with self._together():
            return self._shared.step_waiting()

    def _update(
        self, path: str, inputs: Sequence[Any], named: dict[str, Any], lr: float, given: dict[str, Any]
    ) -> Float[Tensor, ""]:
        with self._together():
            return self._update_by(path, self._program.arrange(inputs, named), lr, given)

    def _update_by(self, path: str, inputs: Sequence[Tensor], lr: float, given: dict[str, Any]) -> Float[Tensor, ""]:
        lr = lr if type(lr) is float and 0.0 <= lr < math.inf else number("lr", lr)
        shared, calls = self._shared, self._shared.counters.calls
        known, accepted = shared.paths.get(path), shared.accepted.get(path)
        optimizer = known
        if optimizer is None or accepted is None or accepted[0] is not optimizer or accepted[1] != given:
            optimizer = shared.accept(path, optimizer, lr, given)
        group = optimizer.param_groups[0]
        before = group["lr"]
        try:
            group["lr"], shared.paths[path] = lr, optimizer
            return self._take(optimizer, inputs)
        except BaseException:
            if shared.counters.calls == calls:  # an interrupt may come after the step was taken
                group["lr"] = before
                if known is None:
                    shared.paths.pop(path, None)
            raise

    def _take(self, optimizer: FusedOptimizer, inputs: Sequence[Tensor], again: bool = False) -> Float[Tensor, ""]:
        shared, accumulate, last = self._shared, self._options.accumulate, True
        counters = shared.counters
        if accumulate > 1:
            if counters.waiting and counters.waiting_for is not optimizer:
                raise ValueError(
                    f"{counters.waiting} of {accumulate} gradients wait for another kind of step; take that one until "
                    "its update"
                )
            last = counters.waiting + 1 == accumulate
        scaler, left_out = shared.scaler, 0
        if scaler is not None:
            inputs, left_out = [*inputs[:-1], scaler.scale], counters.left_out
        if again and accumulate == 1:
            loss, finite = self._backend.again(inputs, optimizer)
        else:
            loss, finite = self._backend.update(inputs, optimizer, last)
        if scaler is not None:
            scaler.update(counters.left_out == left_out)
        if not finite:
            together = self._program.together
            where = f"at step {shared.counters.taken + 1}; nothing was updated"
            if together is None:
                raise not_finite(self._backend, loss, inputs, where)
            blame = together.blame
            raise together.agreed(not_finite(self._backend, loss, inputs, f"{blame}{where} on any rank"))
        return loss


def _parts(batch: Any) -> tuple[Sequence[Any], Mapping[str, Any]]:
    """The inputs of a batch by position and by name."""
    if isinstance(batch, Mapping):
        return (), batch
    if isinstance(batch, Tensor):
        return (batch,), {}
    if isinstance(batch, tuple | list):
        return batch, {}
    raise ShapeError(
        f"a batch is a {type(batch).__name__}; it is a tensor, a tuple or list of inputs, or a mapping from their names"
    )
