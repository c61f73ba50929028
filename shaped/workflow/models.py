"""Model providers: a model with its loss, made at any sizes, saved, loaded and described.

    provider = ModelProvider(MLP, loss, predict=logits)
    params = provider.create(features=30, hidden=16, classes=2, seed=0)
    provider.save(params, "model.safetensors")
    params = provider.load("model.safetensors")        # another process; the sizes are in the file

The file is safetensors: tensors, and a line of JSON with the sizes. Nothing in it is executed.
"""

import hashlib
import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from shaped import files
from shaped.arguments import checked
from shaped.errors import CheckpointCorrupt, CheckpointError, SignatureError, columns, nearest
from shaped.layout import dimension_names, list_names
from shaped.params import ParamList
from shaped.shapes import describe

Model = ParamList | nn.Module
FORMAT = 1


@runtime_checkable
class Provider(Protocol):
    """What a workflow asks of a model provider; `ModelProvider` is one."""

    @property
    def sizes(self) -> tuple[str, ...]: ...

    @property
    def loss(self) -> Callable[..., Any]: ...

    @property
    def predict(self) -> Callable[..., Any] | None: ...

    def create(self, *, seed: int = 0, device: torch.device | str | None = None, **sizes: Any) -> Model: ...

    def save(self, model: Model, path: str | Path, *, about: Mapping[str, Any] | None = None) -> Path: ...

    def load(self, path: str | Path) -> Model: ...


@dataclass(frozen=True)
class Parameter:
    """One entry of a model: its path, its declared shape in dimension names, its size and whether it is trained."""

    name: str
    dims: str
    shape: tuple[int, ...]
    dtype: str
    trained: bool

    @property
    def count(self) -> int:
        """How many numbers it has."""
        return torch.Size(self.shape).numel()


@dataclass(frozen=True)
class ModelInfo:
    """What a model consists of; print it for a table."""

    name: str
    parameters: tuple[Parameter, ...]
    sizes: Mapping[str, int]

    @property
    def count(self) -> int:
        """How many numbers all entries have."""
        return sum(p.count for p in self.parameters)

    @property
    def trained(self) -> int:
        """How many of them are trained."""
        return sum(p.count for p in self.parameters if p.trained)

    def __str__(self) -> str:
        rows = [(p.name, f"[{p.dims}]", f"{list(p.shape)}", p.dtype, f"{p.count:,}{'' if p.trained else ' frozen'}")
                for p in self.parameters]  # fmt: skip
        sizes = ", ".join(f"{name} = {size}" for name, size in self.sizes.items())
        head = f"{self.name}: {self.count:,} numbers, {self.trained:,} trained"
        return "\n".join([head + (f"; {sizes}" if sizes else ""), *(f"  {line}" for line in columns(rows, left=5))])


class ModelProvider:
    """Makes, saves, loads and describes one kind of model.

    Args:
        make: A ParamList class; or a function of sizes, by keyword, to an nn.Module or ParamList. A function without an
            argument `seed` is called with torch's generator seeded, which is then as it was.
        loss: As for `ScalarTrainer`.
        predict: `predict(params, x) -> logits or numbers`, for metrics; for a module the module itself by default.
        name: For files and tables; that of `make` by default.
        defaults: Sizes that need not be given.
    """

    @checked
    def __init__(
        self,
        make: type[ParamList] | Callable[..., Model],
        loss: Callable[..., Any],
        *,
        predict: Callable[..., Any] | None = None,
        name: str = "",
        defaults: Mapping[str, Any] | None = None,
    ) -> None:
        self._make, self.loss, self.predict = make, loss, predict
        self.name = name or getattr(make, "__name__", type(make).__name__)
        self._defaults = dict(defaults or {})
        self._sizes: WeakKeyDictionary[nn.Module, dict[str, Any]] = WeakKeyDictionary()  # of the modules made here

    @property
    def sizes(self) -> tuple[str, ...]:
        """The names of the sizes that a model is made with."""
        kind = self._list_class()
        if kind is not None:
            return tuple(dict.fromkeys([*dimension_names(kind._fields), *sorted(list_names(kind))]))
        parameters = inspect.signature(self._make).parameters.values()
        return tuple(p.name for p in parameters if p.kind is not p.VAR_KEYWORD and p.name != "seed")

    def _list_class(self) -> type[ParamList] | None:
        return self._make if isinstance(self._make, type) and issubclass(self._make, ParamList) else None

    @checked
    def create(self, *, seed: int = 0, device: torch.device | str | None = None, **sizes: Any) -> Model:
        """A new model on a device, with values drawn by `seed`.

        Raises:
            SignatureError: A size is missing or unknown.
        """
        return self._create(sizes, seed=seed, device=device)

    def _create(
        self,
        sizes: Mapping[str, Any],
        *,
        seed: int = 0,
        device: torch.device | str | None = None,
        frozen: Sequence[str] = (),
    ) -> Model:
        known, sizes = self.sizes, {**self._defaults, **sizes}
        unknown = [f"`{name}` is unknown{nearest(name, known)}" for name in sizes if name not in known]
        if unknown:
            raise SignatureError(f"{self.name} is made with {', '.join(known) or 'no sizes'}: {'; '.join(unknown)}")
        kind = self._list_class()
        if kind is not None:
            return kind.init(seed=seed, device=device, frozen=tuple(frozen), **sizes)
        model = self._call(seed, sizes)
        if isinstance(model, nn.Module):
            self._sizes[model.to(device)] = sizes
            for path, parameter in model.named_parameters():
                parameter.requires_grad_(parameter.requires_grad and path not in frozen)
        elif not isinstance(model, ParamList):
            raise SignatureError(f"{self.name} made a {type(model).__name__}, not a ParamList or an nn.Module")
        return model

    def _call(self, seed: int, sizes: dict[str, Any]) -> Any:
        signature = inspect.signature(self._make)
        given = {**sizes, "seed": seed} if "seed" in signature.parameters else sizes
        try:
            signature.bind(**given)
        except TypeError as error:
            raise SignatureError(f"{self.name} cannot be made: {error}") from None
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return self._make(**given)

    @checked
    def info(self, model: Model) -> ModelInfo:
        """Names, shapes with dimension names, and counts. Raises SignatureError where it is no model."""
        params = _params(model)
        rows = tuple(
            Parameter(e.path, " ".join(map(str, e.spec.dims)), tuple(t.shape), _dtype(t), t.requires_grad)
            for e, t in zip(params.entries, params, strict=True)
        )
        return ModelInfo(self.name, rows, params.dims)

    @checked
    def save(
        self,
        model: Model,
        path: str | Path,
        *,
        sizes: Mapping[str, Any] | None = None,
        about: Mapping[str, Any] | None = None,
    ) -> Path:
        """Write a model to one safetensors file, whole or not at all.

        Args:
            model: Made by this provider, or of its kind.
            path: The file; one that is there is replaced.
            sizes: What `load` makes it with; only needed for a module that was made elsewhere.
            about: Plain data that goes into the file; `read_about` gives it back.

        Raises:
            CheckpointError: It cannot be written; what was there is as it was.
        """
        from safetensors.torch import save

        params, path = _params(model), Path(path)
        tensors = {n: t.detach().cpu().contiguous().clone() for n, t in zip(params.names, params, strict=True)}
        note = {
            "format": FORMAT,
            "model": self.name,
            "sizes": dict(sizes) if sizes is not None else self._sizes_of(model),
            "dims": {e.path: " ".join(map(str, e.spec.dims)) for e in params.entries},
            "frozen": [n for n, t in zip(params.names, params, strict=True) if not t.requires_grad],
            "about": dict(about or {}),
            "sha256": _digest(tensors),
        }
        try:
            files.replace(path, save(tensors, {"shaped": json.dumps(note, sort_keys=True)}))
        except (OSError, TypeError, ValueError) as error:
            raise CheckpointError(f"{path} cannot be written: {error}") from error
        return path

    def _sizes_of(self, model: Model) -> dict[str, Any]:
        """What a model was made with: its dimensions and the lengths of its lists, or what this provider remembers."""
        if isinstance(model, nn.Module):
            return dict(self._sizes.get(model, {}))
        lengths = {path.rpartition(".")[2]: length for path, length in model._layout.lengths.items()}
        return {**model.dims, **lengths}

    @checked
    def load(self, path: str | Path, **sizes: Any) -> Model:
        """The model of a file, made at the sizes that are in it (or at those given) with its values.

        Raises:
            CheckpointCorrupt: It is not what was written. CheckpointError: It cannot be read, or is another model's.
        """
        note, tensors = _read(Path(path))
        if note["model"] != self.name:
            raise CheckpointError(f"{path} is a {note['model']}, not a {self.name}")
        try:
            model = self._create({**note["sizes"], **sizes}, frozen=note["frozen"])
        except SignatureError as error:
            raise CheckpointError(f"{path} does not fit {self.name}: {error}") from error
        params = _params(model)
        wrong = [f"`{name}` is missing" for name in params.names if name not in tensors]
        wrong += [f"`{name}` is unknown" for name in tensors if name not in params.names]
        wrong += [
            f"`{name}`: {describe(tensors[name])} there, {describe(t)} here"
            for name, t in zip(params.names, params, strict=True)
            if name in tensors and (tensors[name].shape, tensors[name].dtype) != (t.shape, t.dtype)
        ]
        if wrong:
            raise CheckpointError(f"{path} does not fit {self.name}.\n  " + "\n  ".join(wrong))
        with torch.no_grad():
            for name, t in zip(params.names, params, strict=True):
                t.copy_(tensors[name])
        return model

    @checked
    def read_about(self, path: str | Path) -> dict[str, Any]:
        """What `save` was given as `about`. Raises as `load`."""
        about: dict[str, Any] = _read(Path(path))[0]["about"]
        return about


def _params(model: Any) -> ParamList:
    return model if isinstance(model, ParamList) else ParamList.from_module(model)


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    try:
        metadata, tensors = files.read_tensors(path)
        note = json.loads(metadata["shaped"])
    except FileNotFoundError:
        raise CheckpointError(f"no file {path}") from None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    except (ValueError, KeyError) as error:
        raise CheckpointCorrupt(f"{path} is no model that was saved here: {type(error).__name__}: {error}") from None
    if (
        not isinstance(note, dict)
        or note.get("format") != FORMAT
        or not {"model", "sizes", "frozen", "about"} <= set(note)
    ):
        raise CheckpointError(f"{path} has a format that this version does not read")
    if "sha256" in note and note["sha256"] != _digest(tensors):
        raise CheckpointCorrupt(f"{path} is not what was written: its tensors have another checksum")
    return note, tensors


def _digest(tensors: Mapping[str, Tensor]) -> str:
    found = hashlib.sha256()
    for name in sorted(tensors):
        found.update(f"{name} {describe(tensors[name])}\n".encode())
        found.update(tensors[name].reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()
