"""Parameters as plain data: a state dict that any nn.Module or script loads, and safetensors files."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import torch
from safetensors import SafetensorError
from safetensors.torch import save
from torch import Tensor, nn

from shaped import files
from shaped.arguments import OWN, checked
from shaped.errors import ExportError, StateError
from shaped.export.subject import Owner
from shaped.params import ParamList
from shaped.shapes import describe
from shaped.trainer import ScalarTrainer


@checked
def state_dict(params: Annotated[Owner, OWN]) -> dict[str, Tensor]:
    """Parameters and buffers by name, as copies: what `torch.save`, safetensors and `nn.Module.load_state_dict` take.

    Args:
        params: A trainer, its ParamList, or a module. Optimizer state is no part of it: that is `trainer.state_dict()`.

    Returns:
        Name to tensor, on the parameters' device, without gradients. Of a module: its own state dict, copied.
    """
    return {name: tensor.detach().clone() for name, tensor in _named(params).items()}


@checked
def save_safetensors(
    params: Annotated[Owner, OWN], path: str | Path, metadata: Annotated[Mapping[str, str] | None, OWN] = None
) -> None:
    """Write parameters and buffers by name to a safetensors file, whole or not at all; one that is there is replaced.

    Args:
        params: A trainer, its ParamList, or a module. A tensor that a module has under two names is written twice.
        path: The file.
        metadata: Text to keep in the file's head, by name.

    Raises:
        ExportError: It cannot be written; what was there is as it was.
    """
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in _named(params).items()}
    if metadata is not None and not isinstance(metadata, Mapping):
        raise ExportError(f"metadata is a {type(metadata).__name__}; it is text by name")
    wrong = [f"{k!r}: {v!r}" for k, v in (metadata or {}).items() if not (isinstance(k, str) and isinstance(v, str))]
    if wrong:
        raise ExportError(f"metadata is text by name, and {', '.join(wrong)} is not")
    try:
        files.replace(Path(path), save(tensors, metadata={"format": "pt", **(metadata or {})}))
    except (SafetensorError, OSError, ValueError) as error:
        raise ExportError(f"{path} cannot be written: {error}") from None


@checked
def load_safetensors(params: Annotated[Owner, OWN], path: str | Path) -> None:
    """Take parameters and buffers over from a safetensors file, all or nothing; a trainer keeps its optimizer's state.

    Raises:
        StateError: It is no such file, or has other names, shapes or dtypes; all are listed, and nothing has changed.
    """
    try:
        _, there = files.read_tensors(Path(path))
    except (OSError, ValueError) as error:
        raise StateError(f"{path} cannot be read: {error}") from None
    here = _named(params)
    wrong = [f"{name}: missing there" for name in here if name not in there]
    wrong += [f"{name}: unknown here" for name in there if name not in here]
    wrong += [
        f"{name}: {describe(there[name])} there, {describe(tensor)} here"
        for name, tensor in here.items()
        if name in there and (there[name].shape, there[name].dtype) != (tensor.shape, tensor.dtype)
    ]
    if wrong:
        raise StateError(f"{path} does not fit.\n  " + "\n  ".join(wrong))
    module = _module(params)
    if module is not None:
        module.load_state_dict(there, strict=False)  # by its own hooks: merged adapters would go on with the old sum
        return
    with torch.no_grad():
        for name, tensor in here.items():
            tensor.copy_(there[name])


def _module(params: Owner) -> nn.Module | None:
    """The module that the parameters are of, if they are of one."""
    if isinstance(params, ScalarTrainer):
        return params.modules[0] if params.modules else None
    return params if isinstance(params, nn.Module) else None


def _named(params: Owner) -> dict[str, Tensor]:
    """The tensors themselves, by the names of a state dict."""
    module = _module(params)
    if module is not None:
        return {name: value for name, value in module.state_dict(keep_vars=True).items() if isinstance(value, Tensor)}
    if isinstance(params, ScalarTrainer):
        params = params.params
    if isinstance(params, ParamList):
        return dict(zip(params.names, params.tensors, strict=True))
    raise ExportError(f"params is {describe(params)}: pass a trainer, a ParamList or an nn.Module")
