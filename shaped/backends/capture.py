"""A whole step captured as a CUDA graph: one launch for all of its kernels.

A capture belongs to one tuple of sizes and to the state where it lies now. The first calls run as they are, on a side
stream, so that nothing is tuned within the capture. Then the step is captured on static copies of its inputs, and the
first replay is compared with a direct run from the same state. From then on a call copies the inputs and replays:
parameters, moments, counts and averages are written where they lie, and `lr` is read from its row.

Whoever owns a `Capture` drops it when state is loaded or storage moves; the next calls capture anew. Where something
forbids a capture the step runs directly and the executor's `note` has the reason.
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from shaped.backends.executors import Executor
from shaped.errors import first_line

WARM_UP = 3  # direct calls before a first capture, as torch.cuda.make_graphed_callables takes
# Where the order of a summation is not fixed, a replay may differ from a direct run by some times what two direct runs
# differ by; a wrong replay (a stale input, a state that does not move) differs by the step itself.
_SPREADS = 8.0


class Recorded(Protocol):
    """A captured step."""

    def replay(self) -> None:
        """Run it again on the same memory."""


class Graphs(Protocol):
    """How steps are captured; CudaGraphs, and a fake for tests."""

    def warm(self, run: Callable[[], Sequence[Any]]) -> Sequence[Any]:
        """Run it for real, apart from the stream that is captured later."""

    def capture(self, run: Callable[[], Sequence[Any]]) -> tuple[Recorded, Sequence[Any]]:
        """Record what it launches without running it; its results are filled by each replay."""

    def random_state(self) -> Any:
        """Where the device's generator is."""

    def set_random_state(self, state: Any) -> None:
        """Put it back there."""


class CudaGraphs:
    """torch.cuda's graphs on one device."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream: Any = None

    def warm(self, run: Callable[[], Sequence[Any]]) -> Sequence[Any]:
        """Run on a side stream that the current one waits for."""
        if self._stream is None:
            self._stream = torch.cuda.Stream(self._device)
        current = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            results = run()
        current.wait_stream(self._stream)
        return results

    def capture(self, run: Callable[[], Sequence[Any]]) -> tuple[Recorded, Sequence[Any]]:
        """Capture; torch registers the default generator, so each replay draws anew. Other threads may go on."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.device(self._device), torch.cuda.graph(graph, capture_error_mode="thread_local"):
            results = run()
        return graph, results

    def random_state(self) -> Any:
        """The device's default generator."""
        return torch.cuda.get_rng_state(self._device)

    def set_random_state(self, state: Any) -> None:
        """Put it back."""
        torch.cuda.set_rng_state(state, self._device)


class Capture:
    """A step of an executor at one tuple of sizes: direct at first, then captured and replayed.

    Args:
        executor: What is run; its counters and its note are kept here.
        fixed: How many of the arguments stay where they are (sizes and state); the rest are inputs.
        graphs: How to capture.
    """

    def __init__(self, executor: Executor, fixed: int, graphs: Graphs) -> None:
        self._executor, self._fixed, self._graphs = executor, fixed, graphs
        self._left = WARM_UP if not executor.captures else 1  # compiled code is warm already after the first capture
        self._recorded: Recorded | None = None
        self._inputs: list[Tensor] = []
        self._results: Sequence[Tensor] = ()
        self._refused = False

    def __call__(self, arguments: list[Any]) -> Sequence[Any]:
        """Take one step; what it returns is the caller's."""
        if self._recorded is not None:
            torch._foreach_copy_(self._inputs, arguments[self._fixed :])
            return self._replay(self._recorded)
        if self._refused:
            return self._executor(arguments)
        if self._left:
            self._left -= 1
            return self._graphs.warm(lambda: self._executor(arguments))
        return self._capture(arguments)

    def _replay(self, recorded: Recorded) -> list[Tensor]:
        recorded.replay()
        self._executor.calls += 1
        self._executor.replays += 1
        return [result.clone() for result in self._results]  # the next replay writes over them

    def _capture(self, arguments: list[Any]) -> Sequence[Any]:
        fixed = arguments[: self._fixed]
        outside = [t for t in arguments if isinstance(t, Tensor) and not self._on_device(t)]
        if outside:
            return self._refuse(f"not captured: {len(outside)} of its tensors are on the CPU", arguments)
        inputs = [x.clone() for x in arguments[self._fixed :]]
        try:
            recorded, results = self._graphs.capture(lambda: self._executor.run([*fixed, *inputs]))
        except Exception as error:  # whatever CUDA or an operation says: nothing has run, and the step can run directly
            said = first_line(error)
            return self._refuse(f"not captured: {said}", arguments)
        self._executor.captures += 1
        self._inputs, self._results = inputs, results
        return self._checked(recorded, [t for t in fixed if isinstance(t, Tensor)], arguments)

    def _on_device(self, tensor: Tensor) -> bool:
        return tensor.device == self._executor.key.device

    def _refuse(self, note: str, arguments: list[Any]) -> Sequence[Any]:
        self._refused, self._executor.note = True, note
        return self._executor(arguments)

    def _checked(self, recorded: Recorded, state: Sequence[Tensor], arguments: list[Any]) -> Sequence[Any]:
        """The first step by the capture: a direct run and a replay from one state must leave the same."""
        before, random = [t.clone() for t in state], self._graphs.random_state()

        def again(run: Callable[[], Sequence[Tensor]]) -> tuple[list[Tensor], list[Tensor]]:
            torch._foreach_copy_(list(state), before)
            self._graphs.set_random_state(random)
            results = list(run())
            return results, [t.clone() for t in (*results, *state)]

        _, direct = again(lambda: self._executor.run(list(arguments)))
        _, second = again(lambda: self._executor.run(list(arguments)))
        results, replayed = again(lambda: self._replay(recorded))
        if all(map(_as_near, direct, second, replayed)):
            self._recorded = recorded
            return results
        results, _ = again(lambda: self._executor.run(list(arguments)))
        self._refused = True
        self._executor.note = "captured and dropped: the replay differs from a direct run"
        return results


def _as_near(direct: Tensor, second: Tensor, replayed: Tensor) -> bool:
    """Whether a replay is the direct run, or as near to it as a second direct run is, up to `_SPREADS`."""
    if torch.equal(direct.isnan(), replayed.isnan()) and torch.equal(direct.nan_to_num(), replayed.nan_to_num()):
        return True
    spread = (direct.double() - second.double()).abs().max()
    return bool((direct.double() - replayed.double()).abs().max() <= _SPREADS * spread)
