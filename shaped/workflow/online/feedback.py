"""Examples whose labels come later: kept in a file until they are complete, and given out in batches.

The file is an audit log of the events `ask`, `answer` and `take`; what waits is worked out from it when it is opened.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Shaped
from torch import Tensor

from shaped.arguments import checked, whole
from shaped.checkpoint.codec import join, split
from shaped.errors import ShapeError, nearest
from shaped.workflow.online.audit import AuditLog

Example = tuple[Tensor, ...]


_EVENTS = ("ask", "answer", "take")


class Feedback:
    """Remembers what was asked, and pairs it with the answers.

        feedback = Feedback("feedback.jsonl")
        feedback.ask("order 17", x)                # when the model predicts
        feedback.answer("order 17", y)             # days later, perhaps in another process
        if (batch := feedback.take(32)) is not None:
            learner.observe(*batch)

    Args:
        path: The file; one that is there is gone on with.

    Raises:
        CheckpointCorrupt: The file is not what was written. CheckpointError: It is another log; it is as it was.
    """

    @checked
    def __init__(self, path: str | Path) -> None:
        self._read(Path(path))

    def _read(self, path: Path) -> None:
        self._log = AuditLog(path, only=_EVENTS)
        self._asked: dict[str, Example] = {}
        self._complete: dict[str, Example] = {}
        for event in self._log:
            self._apply(event["event"], event["data"])

    def _catch_up(self) -> None:
        """Read what another process has added."""
        path = self._log.path
        if (path.stat().st_size if path.exists() else 0) != self._log.size:
            self._read(path)

    @property
    def waiting(self) -> tuple[str, ...]:
        """Keys without an answer, the oldest first."""
        self._catch_up()
        return tuple(self._asked)

    @property
    def ready(self) -> int:
        """Complete examples that have not been taken."""
        self._catch_up()
        return len(self._complete)

    @checked
    def ask(self, key: str, *inputs: Shaped[Tensor, "..."]) -> None:
        """Remember the inputs of one example (without a batch axis).

        Raises:
            ValueError: The key is no text, waits already, or its example has not been taken yet. CheckpointError:
            Another process wrote to the file at the same moment; nothing was written, so ask again.
        """
        if not isinstance(key, str):
            raise ValueError(f"the key is {key!r}; it is a text")
        self._catch_up()
        if key in self._asked or key in self._complete:
            raise ValueError(f"`{key}` was asked already, and its example has not been taken")
        self._record("ask", key=key, tensors=_packed(inputs))

    @checked
    def answer(self, key: str, *targets: Shaped[Tensor, "..."]) -> None:
        """Complete an example with its targets.

        Raises:
            ValueError: The key does not wait. ShapeError: The example is not of the shapes and dtypes of those that are
            ready, so that no batch could be made of them.
        """
        self._catch_up()
        if key not in self._asked:
            raise ValueError(f"`{key}` does not wait for an answer{nearest(key, self.waiting)}")
        packed = _packed(targets)
        mine = _forms((*self._asked[key], *targets))
        others = next((_forms(example) for example in self._complete.values()), mine)
        if mine != others:
            raise ShapeError(f"the example `{key}` is {', '.join(mine)}; those that are ready are {', '.join(others)}")
        self._record("answer", key=key, tensors=packed)

    @checked
    def take(self, n: int) -> tuple[Tensor, ...] | None:
        """The n examples that were completed first, as a batch; None while there are fewer.

        They are given out once: whoever takes them has to keep them.
        """
        whole("n", n, 1)
        self._catch_up()
        if n > len(self._complete):
            return None
        keys = list(self._complete)[:n]
        batch = tuple(torch.stack(parts) for parts in zip(*(self._complete[key] for key in keys), strict=True))
        self._record("take", keys=keys)
        return batch

    def _record(self, event: str, **data: Any) -> None:
        self._apply(event, self._log.append(event, **data)["data"])

    def _apply(self, event: str, data: Mapping[str, Any]) -> None:
        if event == "ask":
            self._asked[data["key"]] = _unpacked(data["tensors"])
        elif event == "answer":
            self._complete[data["key"]] = (*self._asked.pop(data["key"]), *_unpacked(data["tensors"]))
        elif event == "take":
            for key in data["keys"]:
                del self._complete[key]


def _forms(example: Sequence[Tensor]) -> list[str]:
    return [f"{str(t.dtype).removeprefix('torch.')} {tuple(t.shape)}" for t in example]


def _packed(tensors: Sequence[Tensor]) -> list[dict[str, Any]]:
    plain = [
        {"dtype": str(t.dtype).removeprefix("torch."), "shape": list(t.shape), "values": t.flatten().tolist()}
        for t in tensors
    ]
    found: list[dict[str, Any]] = split(plain)[0]  # NaN and infinities become strings
    return found


def _unpacked(data: Sequence[Any]) -> Example:
    parts = join(list(data), {})
    return tuple(torch.tensor(p["values"], dtype=getattr(torch, p["dtype"])).reshape(p["shape"]) for p in parts)
