"""Integer inputs that are used as positions or classes, and what their values must lie between.

Shapes say nothing of values. But a program that looks up `table[ids]` is right for `0 <= ids < vocab` only, and that is
part of what is proved, in the names of the statement. A step checks it on the device.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

# What gives the same numbers, in another order or shape.
SAME = {"view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze", "transpose", "t", "permute", "contiguous"}
SAME |= {"to", "long", "int", "clone", "detach", "expand", "expand_as", "repeat", "ravel", "movedim", "swapaxes"}
WHOLE = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


def uses(name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Iterator[tuple[Tensor, Any, bool]]:
    """Tensors of positions in a call, each with the length that they index, and whether negative ones count back."""

    def argument(position: int, *names: str) -> Any:
        return args[position] if len(args) > position else next((kwargs[n] for n in names if n in kwargs), None)

    first, second, third = argument(0, "input"), argument(1, "dim", "weight", "target"), argument(2, "index")
    if name in ("embedding", "embedding_bag") and isinstance(second, Tensor):
        yield first, second.shape[0], False
    elif name in ("cross_entropy", "nll_loss") and isinstance(second, Tensor) and isinstance(first, Tensor):
        if kwargs.get("ignore_index", -100) == -100 and first.dim() > 0:
            yield second, first.shape[1 if first.dim() > 1 else 0], False
    elif name in ("gather", "index_select", "take_along_dim") and isinstance(first, Tensor) and isinstance(second, int):
        if -first.dim() <= second < first.dim():
            yield third, first.shape[second], False
    elif name == "one_hot":
        classes = argument(1, "num_classes")
        if classes is not None and not (isinstance(classes, int) and classes < 0):
            yield first, classes, False
    elif name == "getitem" and isinstance(first, Tensor):
        parts = args[1] if isinstance(args[1], tuple) else (args[1],)
        if all(isinstance(part, Tensor | slice) for part in parts) and len(parts) <= first.dim():
            for part, length in zip(parts, first.shape, strict=False):
                yield part, length, True


class Indices:
    """The whole numbers among a program's inputs, followed through views and copies, and what is asked of them.

    Attributes:
        values: What was asked, in the order in which it was: `0 <= ids < vocab`.
    """

    def __init__(self, inputs: Mapping[str, Tensor], show: Callable[[Any], str]) -> None:
        self._known = {id(t): (t, path) for path, t in inputs.items() if t.dtype in WHOLE}  # kept: ids are not reused
        self._show = show
        self.values: dict[str, None] = {}

    def note(self, name: str, args: Sequence[Any], kwargs: Mapping[str, Any], result: Any) -> None:
        """Look at a call."""
        if not self._known:
            return
        for index, length, counts_back in uses(name, args, kwargs):
            _, path = self._known.get(id(index), (None, ""))
            if path:
                shown = self._show(length)
                least = f"-{shown}" if shown.isidentifier() or shown.isdecimal() else f"-({shown})"
                self.values[f"{least if counts_back else 0} <= {path} < {shown}"] = None
        whole = isinstance(result, Tensor) and result.dtype in WHOLE
        if name in SAME and args and id(args[0]) in self._known and whole:
            self._known[id(result)] = result, self._known[id(args[0])][1]
