"""Adapters as PEFT's files: `adapter_model.safetensors` and `adapter_config.json`, read and written without PEFT.

    base_model.model.<path>.lora_A.weight : [rank, in]        base_model.model.<path>.lora_B.weight : [out, rank]

A parameter list has its matrices as [in, out] (`x @ w`), so a and b are written transposed, with `fan_in_fan_out`.
"""

import json
import os
import re
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn

from shaped import files
from shaped.arguments import checked
from shaped.errors import StateError, listing
from shaped.lora.lists import Adapted
from shaped.lora.modules import adapters, inject

TENSORS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
_PREFIX = "base_model.model."
# What PEFT calls plain LoRA: alpha/rank * B @ A beside the layer, and nothing else. Written as they stand here.
_PLAIN: Mapping[str, Any] = {
    "bias": "none",
    "use_rslora": False,
    "use_dora": False,
    "lora_bias": False,
    "rank_pattern": {},
    "alpha_pattern": {},
    "modules_to_save": None,
    "layer_replication": None,
}
# What must be of one save in both files, or the adapter computes what was never trained.
_PAIRED = ("r", "lora_alpha")
# Settings that are read as they are: they say where an adapter goes and how it was trained, not what it computes.
_ASIDE = {
    *("peft_type", "task_type", "auto_mapping", "base_model_name_or_path", "revision", "peft_version"),
    *("inference_mode", "r", "lora_alpha", "lora_dropout", "fan_in_fan_out", "target_modules", "exclude_modules"),
    *("layers_to_transform", "layers_pattern", "megatron_config", "megatron_core", "qalora_group_size"),
    *("loftq_config", "eva_config"),
}
# First values that leave the base as it is. Others (pissa, olora, loftq, ...) belong to a base that was changed.
_FIRST = (True, False, None, "gaussian", "orthogonal", "eva")


@checked
def save_adapter(adapted: nn.Module | Adapted[Any], folder: str | os.PathLike[str]) -> Path:
    """Write the adapter alone, in PEFT's format; the folder is made.

    It is whole or as it was, whenever the process is killed: `load_adapter` finds the old one or the new one. For PEFT
    itself there is for a moment none, where an old one is replaced; the next save or load here finishes that.

    Args:
        adapted: A module after `inject`, or what `adapt` gave.
        folder: Where the two files go.

    Raises:
        StateError: The module has no adapter, or several ranks.
    """
    found = _tensors(adapted)
    kinds = {(rank, alpha) for _, rank, alpha in _parts(adapted)}
    if len(kinds) != 1:
        raise StateError(f"{type(adapted).__name__} has {'no adapter' if not kinds else 'adapters of several ranks'}")
    rank, alpha = kinds.pop()
    config: dict[str, Any] = {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": None,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": int(alpha) if float(alpha).is_integer() else alpha,
        "lora_dropout": 0.0,
        "target_modules": sorted(name for name, _, _ in _parts(adapted)),
        "fan_in_fan_out": isinstance(adapted, Adapted),
        "init_lora_weights": True,
        **_PLAIN,
    }
    place = Path(folder)
    place.mkdir(parents=True, exist_ok=True)
    written = {name: tensor.detach().cpu().contiguous() for name, tensor in found.items()}
    pair = json.dumps({key: config[key] for key in _PAIRED}, sort_keys=True)
    tensors = save(written, metadata={"format": "pt", "shaped": pair})
    text = json.dumps(config, indent=2, sort_keys=True).encode()
    files.replace_together(place, {TENSORS: tensors, CONFIG: text})
    return place


@checked
def load_adapter(adapted: nn.Module | Adapted[Any], folder: str | os.PathLike[str]) -> None:
    """Take over an adapter in PEFT's format, all or nothing. A module without adapters first gets those of the files.

    Raises:
        StateError: The files are missing, are no plain LoRA, or do not fit; every difference is listed.
    """
    config, found = read_adapter(folder)
    if isinstance(adapted, nn.Module) and not _parts(adapted):
        _inject_alike(adapted, config, found)
    wrong = [
        f"{name}: {key} = {config[setting]} there, {value} here"
        for name, rank, alpha in _parts(adapted)
        for key, setting, value in (("rank", "r", rank), ("alpha", "lora_alpha", alpha))
        if config[setting] != value
    ]
    mine = _tensors(adapted)
    wrong += _differences({key: tensor.shape for key, tensor in mine.items()}, found)
    if wrong:
        raise StateError(f"the adapter in {folder} does not fit.\n  " + "\n  ".join(wrong))
    if rounded := [key for key, tensor in mine.items() if tensor.dtype.itemsize < found[key].dtype.itemsize]:
        dtypes = f"{found[rounded[0]].dtype} there, {mine[rounded[0]].dtype} here".replace("torch.", "")
        warnings.warn(f"the adapter in {folder} is rounded: {listing(rounded)} are {dtypes}", stacklevel=2)
    layers = [part for _, part in adapters(adapted) if part.merged] if isinstance(adapted, nn.Module) else []
    for part in layers:
        part.unmerge()
    with torch.no_grad():
        for key, tensor in mine.items():  # views of the parameters, transposed or not
            tensor.copy_(found[key])
    for part in layers:
        part.merge()


@checked
def read_adapter(folder: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Configuration and tensors of an adapter in PEFT's format.

    Raises:
        StateError: A file is missing or unreadable, or the adapter is no plain LoRA; says which setting.
    """
    place = Path(folder)
    with suppress(OSError):  # where nothing can be written it is read as it lies
        files.settle(place, (TENSORS, CONFIG))
    try:
        config = json.loads(files.check_followed(files.together(place, CONFIG)).read_text())
    except (OSError, ValueError) as error:
        raise StateError(f"no adapter in {place}: {error}") from None
    try:
        pair, found = _load(files.together(place, TENSORS))
    except FileNotFoundError as error:
        raise StateError(f"no adapter in {place}: {error}") from None
    except (OSError, ValueError) as error:
        raise StateError(f"{place / TENSORS} cannot be read: {error}") from None
    if not isinstance(config, dict) or config.get("peft_type") != "LORA" or not {"r", "lora_alpha"} <= set(config):
        raise StateError(f"{place / CONFIG} is no LoRA configuration")
    for key, least in (("r", 1), ("lora_alpha", 0)):
        number = isinstance(config[key], int | float) and not isinstance(config[key], bool)
        if not number or not config[key] >= least or (key == "r" and not isinstance(config[key], int)):
            raise StateError(f"{place / CONFIG}: {key} is {config[key]!r}")
    if pair is not None and (differ := [key for key in _PAIRED if config[key] != pair.get(key)]):
        said = ", ".join(f"{key} = {config[key]} in {CONFIG}, {pair.get(key)} in {TENSORS}" for key in differ)
        raise StateError(f"the two files in {place} are of different saves: {said}")
    if whole := [f"{name} ({str(t.dtype)[6:]})" for name, t in found.items() if not t.is_floating_point()]:
        raise StateError(f"{place / TENSORS}: an adapter is of floating-point numbers, not {listing(whole)}")
    odd = [f"{key} = {value!r}" for key, value in config.items() if not _is_plain(key, value)]
    if odd:
        raise StateError(f"{place}: plain LoRA is read here, and the adapter has {', '.join(odd)}")
    return config, found


def _load(path: Path) -> tuple[dict[str, Any] | None, dict[str, Tensor]]:
    """The tensors of a file, and what its configuration said where it was written here."""
    metadata, found = files.read_tensors(path)
    said = json.loads(metadata["shaped"]) if "shaped" in metadata else None
    return said if isinstance(said, dict) else None, found


def _is_plain(key: str, value: Any) -> bool:
    """Whether a setting leaves it plain LoRA; one that is unknown here may only be unset."""
    if key == "init_lora_weights":
        return value in _FIRST
    return key in _ASIDE or not value or value == _PLAIN.get(key)


def _parts(adapted: nn.Module | Adapted[Any]) -> list[tuple[str, int, float]]:
    """Each target with its rank and alpha."""
    if isinstance(adapted, Adapted):
        return [(name, adapted.rank, adapted.alpha) for name in adapted.targets]
    return [(name, part.rank, part.alpha) for name, part in adapters(adapted)]


def _tensors(adapted: nn.Module | Adapted[Any]) -> dict[str, Tensor]:
    """The adapter's tensors under PEFT's names, as views that share memory with the parameters."""
    if isinstance(adapted, Adapted):
        pairs = [(n, adapted.params[f"{n}.a"].detach().T, adapted.params[f"{n}.b"].detach().T) for n in adapted.targets]
    else:
        pairs = [(name, part.lora_A.detach(), part.lora_B.detach()) for name, part in adapters(adapted)]
    return {
        f"{_PREFIX}{name}.lora_{letter}.weight": tensor
        for name, a, b in pairs
        for letter, tensor in (("A", a), ("B", b))
    }


def _inject_alike(module: nn.Module, config: Mapping[str, Any], found: Mapping[str, Tensor]) -> None:
    """Adapters where the files have them, once it is known that they fit."""
    end = ".lora_A.weight"
    names = [key.removeprefix(_PREFIX).removesuffix(end) for key in found if key.endswith(end)]
    linear = {name: part for name, part in module.named_modules() if type(part) is nn.Linear}
    absent = [name for name in names if name not in linear]
    if absent or not names:
        raise StateError(f"{type(module).__name__} has no torch.nn.Linear {listing(absent)}, which the adapter is for")
    names = [name for name in linear if name in names or _is_target(name, config)]
    rank = config["r"]
    wanted = {
        f"{_PREFIX}{name}.lora_{letter}.weight": shape
        for name in names
        for letter, shape in (("A", (rank, linear[name].in_features)), ("B", (linear[name].out_features, rank)))
    }
    if wrong := _differences(wanted, found):
        raise StateError(f"the adapter does not fit {type(module).__name__}.\n  " + "\n  ".join(wrong))
    inject(module, names, rank=rank, alpha=float(config["lora_alpha"]))


def _is_target(name: str, config: Mapping[str, Any]) -> bool:
    """Whether a configuration puts an adapter beside a layer, as PEFT reads it."""
    targets, layers = config.get("target_modules"), config.get("layers_to_transform")
    if not _means(targets, name) or _means(config.get("exclude_modules"), name):
        return False
    if layers is None or isinstance(targets, str):
        return True
    pattern = config.get("layers_pattern") or [r"[^.]*"]
    for part in [pattern] if isinstance(pattern, str) else pattern:
        if found := re.match(rf".*\.{part}\.(\d+)\.", name):
            return int(found.group(1)) in ([layers] if isinstance(layers, int) else layers)
    return False


def _means(targets: Any, name: str) -> bool:
    """A pattern for whole names, or names and ends of names. `all-linear` is left to the file."""
    if isinstance(targets, str):
        try:
            return targets != "all-linear" and re.fullmatch(targets, name) is not None
        except re.error as error:
            raise StateError(f"{CONFIG}: {targets!r} is no pattern: {error}") from None
    if not (targets is None or (isinstance(targets, list) and all(isinstance(target, str) for target in targets))):
        raise StateError(f"{CONFIG}: {targets!r} names no modules")
    return any(name == target or name.endswith(f".{target}") for target in targets or ())


def _differences(wanted: Mapping[str, Sequence[int]], found: Mapping[str, Tensor]) -> list[str]:
    """What is missing, unknown or of another shape than it should be."""
    wrong = [f"{key}: missing" for key in wanted if key not in found]
    wrong += [f"{key}: unknown" for key in found if key not in wanted]
    return wrong + [
        f"{key}: {list(found[key].shape)} there, {list(shape)} here"
        for key, shape in wanted.items()
        if key in found and tuple(found[key].shape) != tuple(shape)
    ]
