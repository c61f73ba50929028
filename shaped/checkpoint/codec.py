"""State as JSON and tensors: a tree of plain data, with each tensor under a name of its own. No pickle.

Kept exactly: None, bool, int, float (NaN and infinities too), str, list, tuple, dict with any plain keys, and tensors
with dtype and shape, on the CPU. Complex tensors are stored as pairs of real numbers.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from shaped.errors import CheckpointError
from shaped.ranks import Piece

_DEPTH, _DIGITS = 64, 400


def split(tree: Any) -> tuple[Any, dict[str, Any]]:
    """A tree as JSON-able data, and its tensors by name; pieces of tensors are among them as they are.

    Raises:
        CheckpointError: Something in it is no plain data; the message says where.
    """
    tensors: dict[str, Any] = {}
    return _split(tree, (), tensors), tensors


def _split(node: Any, path: tuple[str, ...], tensors: dict[str, Any]) -> Any:
    where = ".".join(path) or "the state"
    if len(path) > _DEPTH:
        raise CheckpointError(f"{where} is nested too deeply to be saved")
    if node is None or isinstance(node, bool | str) or type(node) is int:
        if type(node) is int and abs(node) >= 10**_DIGITS:
            raise CheckpointError(f"{where} has more than {_DIGITS} digits and cannot be saved")
        return node
    if isinstance(node, float):
        return float(node) if math.isfinite(node) else {"$float": str(float(node))}
    if isinstance(node, Tensor):
        if node.layout is not torch.strided or node.is_quantized or node.is_meta:
            raise CheckpointError(f"{where} is a {node.layout} tensor that cannot be saved")
        name = where if where not in tensors else f"{where}#{len(tensors)}"
        tensors[name] = _plain(node)
        return {"$complex" if node.is_complex() else "$tensor": name}
    if isinstance(node, Piece):
        tensors[where] = node if not node.tensor.is_complex() else _pairs(node)
        tensors[where] = replace(tensors[where], tensor=_plain(tensors[where].tensor))
        return {"$complex" if node.tensor.is_complex() else "$tensor": where}
    if isinstance(node, Mapping):
        if all(isinstance(key, str) and not key.startswith("$") for key in node):
            return {key: _split(value, (*path, key), tensors) for key, value in node.items()}
        keys = [_split(key, (*path, "a key"), tensors) for key in node]
        return {
            "$items": [[k, _split(v, (*path, str(i)), tensors)] for k, (i, v) in zip(keys, node.items(), strict=True)]
        }
    if isinstance(node, list | tuple):
        items = [_split(value, (*path, str(i)), tensors) for i, value in enumerate(node)]
        return items if isinstance(node, list) else {"$tuple": items}
    raise CheckpointError(
        f"{where} is a {type(node).__name__}: a checkpoint takes numbers, strings, lists, dicts and tensors"
    )


def _plain(tensor: Tensor) -> Tensor:
    """As safetensors takes it: on the CPU, dense, and complex numbers as pairs."""
    plain = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous()
    return torch.view_as_real(plain) if plain.is_complex() else plain  # it has no complex128


def _pairs(piece: Piece) -> Piece:
    """A piece of complex numbers as one of pairs."""
    pairs = torch.view_as_real(piece.tensor.resolve_conj()).reshape(-1)
    return Piece(pairs, (*piece.shape, 2), 2 * piece.start)


def join(data: Any, tensors: Mapping[str, Tensor]) -> Any:
    """The tree again.

    Raises:
        ValueError, KeyError, TypeError: It was not made by `split`.
    """
    if isinstance(data, list):
        return [join(item, tensors) for item in data]
    if not isinstance(data, dict):
        return data
    if len(data) != 1 or not next(iter(data)).startswith("$"):
        return {key: join(value, tensors) for key, value in data.items()}
    (kind, value), *_ = data.items()
    if kind == "$tensor":
        return tensors[value]
    if kind == "$complex":
        return torch.view_as_complex(tensors[value])
    if kind == "$float":
        return {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}[value]
    if kind == "$tuple":
        return tuple(join(item, tensors) for item in value)
    if kind == "$items":
        return {join(k, tensors): join(v, tensors) for k, v in value}
    raise ValueError(f"unknown kind {kind}")


def to_json(data: Any, *, in_order: bool = False) -> bytes:
    """The one spelling of some data, with keys sorted; or with keys in the order that they have."""
    text = json.dumps(data, allow_nan=False, ensure_ascii=True, separators=(",", ":"), sort_keys=not in_order)
    return text.encode("ascii")


def from_json(text: bytes) -> Any:
    """Data from JSON, strictly: no key twice, no NaN, no numbers beyond what is sensible.

    Raises:
        ValueError, RecursionError: It is not such JSON.
    """

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            raise ValueError("a key is there twice")
        return found

    def number(text: str) -> int:
        if len(text) > _DIGITS + 1:
            raise ValueError("a number is too long")
        return int(text)

    def refuse(text: str) -> Any:
        raise ValueError(f"{text} is no number of JSON")

    return json.loads(text.decode("ascii"), object_pairs_hook=once, parse_constant=refuse, parse_int=number)
