"""Tensors that stand for others in a run: of a trace, or of a trial, for the parameters of a trainer."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode

from shaped.proof.rewrites import deep_copy

_REAL = "_stands_for"


class Standing(TorchFunctionMode):
    """Puts the tensors of a run in the place of the real ones that they stand for, wherever these are read from.

    Attributes that the user put on a real one (`p.w.scale`) are there on its stand-in.
    """

    def __init__(self, real: Sequence[Tensor], traced: Sequence[Tensor]) -> None:
        super().__init__()
        self._for = {id(tensor): stand for tensor, stand in zip(real, traced, strict=False)}
        for tensor, stand in zip(real, traced, strict=False):
            of_stand = vars(stand)
            for name, value in [*vars(tensor).items(), (_REAL, tensor)]:
                of_stand.setdefault(name, value)

    def __torch_function__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if self._for:
            args, kwargs = self._put(args), {name: self._put(value) for name, value in (kwargs or {}).items()}
        if func is Tensor.__deepcopy__:  # of a run on real tensors, too: torch writes into storages, which seem others'
            func = deep_copy
        return func(*args, **(kwargs or {}))

    def _put(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return self._for.get(id(value), value)
        if type(value) in (list, tuple):
            return type(value)(map(self._put, value))
        return value


def real_of(tensor: Tensor) -> Tensor:
    """The real tensor that one stands for; itself if it stands for none."""
    real: Tensor = vars(tensor).get(_REAL, tensor)
    return real
