"""Devices: a program that asks for a GPU is followed where there is none."""

from typing import Any

import torch
from torch.overrides import TorchFunctionMode


class OnTheCPU(TorchFunctionMode):
    """Where there is no GPU, what asks for one stays on the CPU: the shapes are the same."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        if not torch.cuda.is_available():
            if func is torch.Tensor.cuda:
                return args[0]
            if func is torch.Tensor.to and len(args) > 1 and _is_gpu(args[1]):
                args = (args[0], "cpu", *args[2:])
            if _is_gpu(kwargs.get("device")):
                kwargs = {**kwargs, "device": "cpu"}
        return func(*args, **kwargs)


def _is_gpu(device: Any) -> bool:
    return isinstance(device, str | torch.device) and str(device).partition(":")[0] in ("cuda", "hip")
