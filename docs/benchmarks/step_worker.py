"""One contender in a process of its own, spoken to over pipes; torch and JAX workers share it.

It reads a line, does it, and answers with a line of JSON:

    first       make the step and take it once              -> seconds, and the loss
    losses N    N steps                                     -> the loss of each
    round N     N steps, waiting for the last               -> seconds, and seconds until the last was submitted
    memory      the most memory that the process has held   -> bytes

Standard library only: the JAX environment has no torch.
"""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

Step = Callable[[], Any]  # takes a step on the one batch; returns its loss, wherever that is


def serve(make: Callable[[], Step], wait: Callable[[Any], None], memory: Callable[[], int] | None = None) -> None:
    """Answer until the other side closes the pipe.

    Args:
        make: Makes the step; what it and the first step take is the first step's time.
        wait: Waits for the device to have computed a loss.
        memory: Bytes at most held on the device; default: by this process.
    """
    answers, sys.stdout = sys.stdout, sys.stderr  # what libraries print is no answer
    say = lambda answer: print(json.dumps(answer), file=answers, flush=True)  # noqa: E731
    say("ready")
    step: Step = lambda: None  # noqa: E731
    for line in sys.stdin:
        command, _, count = line.strip().partition(" ")
        if command == "first":
            began = time.perf_counter()
            step = make()
            loss = step()
            wait(loss)
            say([time.perf_counter() - began, float(loss)])
        elif command == "losses":
            say([float(step()) for _ in range(int(count))])
        elif command == "round":
            began = time.perf_counter()
            for _ in range(int(count)):
                loss = step()
            submitted = time.perf_counter()
            wait(loss)
            say([time.perf_counter() - began, submitted - began])
        elif command == "memory":
            say((memory or _peak)())


def _peak() -> int:
    """VmHWM and not ru_maxrss, which a process takes over from the one that started it."""
    status = Path("/proc/self/status").read_text()
    return 1024 * next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))
