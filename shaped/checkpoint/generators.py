"""The random generators of a process, as plain data: torch's on the CPU and each CUDA device, Python's, and numpy's."""

import random
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from shaped.arguments import keyed


def generator_states() -> dict[str, Any]:
    """Where every global generator is now; numpy's only if something has imported it."""
    version, words, gauss = random.getstate()
    states: dict[str, Any] = {
        "torch": torch.get_rng_state(),
        "python": {"version": version, "words": torch.tensor(words, dtype=torch.int64), "gauss": gauss},
    }
    if torch.cuda.is_initialized():
        states["cuda"] = list(torch.cuda.get_rng_state_all())
    if "numpy" in sys.modules:
        name, keys, position, has_gauss, cached = sys.modules["numpy"].random.get_state()
        words = torch.from_numpy(keys.astype("int64"))
        states["numpy"] = {"name": name, "words": words, "at": [int(position), int(has_gauss), float(cached)]}
    return states


def set_generator_states(states: Mapping[str, Any]) -> None:
    """Put the generators where `generator_states` found them; those that it does not name stay as they are."""
    keyed("states", states, "torch", "python")
    torch.set_rng_state(states["torch"])
    python = states["python"]
    random.setstate((python["version"], tuple(python["words"].tolist()), python["gauss"]))
    if "cuda" in states and torch.cuda.is_available() and len(states["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(states["cuda"])
    if "numpy" in states:
        import numpy

        position, has_gauss, cached = states["numpy"]["at"]
        keys = states["numpy"]["words"].numpy().astype("uint32")
        numpy.random.set_state((states["numpy"]["name"], keys, position, has_gauss, cached))


@contextmanager
def generators_kept() -> Iterator[None]:
    """Leave the generators as they were, whatever is drawn inside."""
    states = generator_states()
    try:
        yield
    finally:
        set_generator_states(states)
