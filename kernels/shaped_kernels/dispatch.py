"""The one place that decides whether an update runs in Triton or in torch.

    tensors on a GPU (CUDA or ROCm), triton importable      -> "triton"
    everything else                                         -> "torch"
    SHAPED_KERNELS=torch | triton in the environment        -> that one, or an error that says why not

Nothing here imports triton: the kernels do, on their first launch.
"""

import os
from functools import cache
from importlib.util import find_spec
from typing import Literal

import torch

Path = Literal["triton", "torch"]


def choose_path(device: torch.device) -> Path:
    """Say where updates of tensors on `device` run.

    Args:
        device: The device of every tensor of the update.

    Returns:
        "triton" or "torch", by the table at the top of this file. The environment is read on every
        call, so a test may change it; callers keep the answer as long as they keep their tensors.

    Raises:
        ValueError: `SHAPED_KERNELS` names neither path, or asks for Triton where it cannot run.
    """
    wish = os.environ.get("SHAPED_KERNELS", "")
    if wish == "torch":
        return "torch"
    if wish == "triton":
        return _insist_on_triton(device)
    if wish:
        raise ValueError(f"SHAPED_KERNELS must be 'torch' or 'triton', got {wish!r}")
    return "triton" if device.type == "cuda" and _triton_is_installed() else "torch"


def _insist_on_triton(device: torch.device) -> Path:
    if not _triton_is_installed():
        raise ValueError("SHAPED_KERNELS=triton, but triton is not installed: install it or unset SHAPED_KERNELS")
    if device.type != "cuda" and not interpreting():
        raise ValueError(
            f"SHAPED_KERNELS=triton, but the tensors are on {device}: Triton needs a GPU, or TRITON_INTERPRET=1 "
            "set before triton is imported"
        )
    return "triton"


def interpreting() -> bool:
    """Say whether the environment asks for Triton's interpreter, which runs kernels on the CPU."""
    return os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "on", "yes", "y")


@cache
def _triton_is_installed() -> bool:
    return find_spec("triton") is not None
