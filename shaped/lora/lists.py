"""LoRA over parameter lists: the user's loss on w + alpha/rank * a @ b, with w frozen.

    w : [rows, columns]     a : [rows, rank]     b : [rank, columns]     lora_alpha : []

`rank` is a dimension of the trainer's own proof. With `base="nf4"` the frozen w is kept as codes and scales, and made
again where the loss needs it.
"""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar, cast

import torch
from torch import Tensor

from shaped import init
from shaped.arguments import checked
from shaped.drawing import draw_entry
from shaped.errors import ShapeError, listing
from shaped.layout import Field
from shaped.lora.names import adapter_dtype, check_rank, matching
from shaped.lora.nf4 import BLOCK, dequantise_nf4, quantise_nf4
from shaped.params import ParamList
from shaped.shapes import Dim, Entry, TensorSpec, worn

P = TypeVar("P", bound=ParamList)
Base = Literal["float", "nf4"]
ALPHA = "lora_alpha"


@dataclass(frozen=True)
class Adapted(Generic[P]):
    """A loss and its parameters with an adapter: `ScalarTrainer(adapted.loss, adapted.params, save_frozen=False)`.

    Attributes:
        loss: The user's loss over `params`; the rest of its signature is the same.
        params: The base, frozen; `<path>.a` and `<path>.b` for each target; `lora_alpha`, frozen, which states carry.
        targets: The paths that have an adapter.
        rank: The adapter's size.
    """

    loss: Callable[..., Any]
    params: ParamList
    targets: tuple[str, ...]
    rank: int
    _like: P

    @property
    def alpha(self) -> float:
        """The adapter's scale is alpha/rank."""
        found: float = self.params[ALPHA].item()
        return found

    def merged(self) -> P:
        """The base with the adapter added: a list of the loss's own class, as the adapted loss sees it."""
        with torch.no_grad():
            return cast(P, self._like.like([t.clone() for t in self._weights(self.params)]))

    def unmerged(self) -> P:
        """The base alone, bit for bit what was adapted (from NF4: what its codes stand for)."""
        with torch.no_grad():
            return cast(P, self._like.like([self._base(self.params, name).clone() for name in self._like.names]))

    def _weights(self, params: ParamList) -> list[Tensor]:
        scale = params[ALPHA] / self.rank
        return [
            self._with(self._base(params, name), scale * (params[f"{name}.a"] @ params[f"{name}.b"]))
            if name in self.targets
            else self._base(params, name)
            for name in self._like.names
        ]

    def _with(self, base: Tensor, product: Tensor) -> Tensor:
        """The sum in the base's dtype; beside bfloat16 the product is float32 until then."""
        return (base + product).to(base.dtype)

    def _base(self, params: ParamList, name: str) -> Tensor:
        if f"{name}.codes" in params.names:
            return dequantise_nf4(params[f"{name}.codes"], params[f"{name}.scales"])
        found: Tensor = params[name]
        return found


@checked
def adapt(
    loss: Callable[..., Any],
    params: P,
    targets: Sequence[str],
    *,
    rank: int = 8,
    alpha: float = 8.0,
    seed: int = 0,
    base: Base = "float",
) -> Adapted[P]:
    """Put low-rank adapters beside weights of a parameter list, and freeze the list.

    The adapted weight is computed whole, so the loss may use it in any way (transposed, or in two places): the price is
    its memory in each pass. At first b is 0 and the loss is that of `params`.

    Args:
        loss: `loss(params, *inputs)`, annotated, over the class of `params`.
        params: The base. Its tensors are used in place and stay as they are.
        targets: Matrices of it: paths, ends of paths, or patterns (`"w1"`, `"wq"`, `"blocks.*.wq"`).
        rank, alpha: The update is alpha/rank * a @ b. PEFT's defaults.
        seed: Draws a, uniform in ±1/sqrt(rows), as PEFT's does.
        base: "float" keeps the targets as they are, "nf4" in four bits and a scale for each 64 neighbours of a row.

    Raises:
        ShapeError: A target means nothing, or no floating-point matrix; under "nf4", its columns do not divide by 64.
        ValueError: `rank`, `alpha` or `base` is not usable.
    """
    check_rank(rank, alpha)
    owner = type(params).__name__
    if ALPHA in params.names:
        raise ShapeError(f"{owner} has adapters already: adapt adapted.merged(), which has them in its weights")
    chosen = matching(owner, params.names, targets)
    _refuse(owner, params, chosen, base)
    dimension = "rank" if "rank" not in params.dims else "lora_rank"
    fields: list[Field] = []
    tensors: list[Tensor] = []
    for entry, tensor in zip(params.entries, params, strict=True):
        four_bits = base == "nf4" and entry.path in chosen
        fields += _quantised_fields(entry) if four_bits else [_field(entry.path, entry.spec, entry)]
        tensors += quantise_nf4(tensor) if four_bits else [tensor.detach()]
    sizes = {**params.dims, dimension: rank}
    for entry in (entry for entry in params.entries if entry.path in chosen):
        rows, columns = entry.spec.dims
        like, dtype = params[entry.path], adapter_dtype(params[entry.path].dtype)
        for name, dims in ((f"{entry.path}.a", (rows, Dim(dimension))), (f"{entry.path}.b", (Dim(dimension), columns))):
            spec = _spec(dims, dtype, entry.spec)
            fields.append(_field(name, spec, entry))
            start = init.fan_in() if name.endswith(".a") else init.zeros()
            tensors.append(draw_entry(Entry(name, spec), start, sizes, seed, dtype).to(like.device))
    # Float64, which holds the number as it was given.
    fields.append(_field(ALPHA, TensorSpec((), (torch.float64,), "Float64"), params.entries[0]))
    tensors.append(torch.tensor(float(alpha), dtype=torch.float64, device=params.device))
    made = _list_class(f"{owner}+LoRA", fields)
    mask = [field.name.endswith((".a", ".b")) and field.name[:-2] in chosen for field in fields]
    whole = made(*tensors, requires_grad=mask)
    return _bound(loss, params, whole, tuple(chosen), rank)


def _bound(loss: Callable[..., Any], base: P, whole: ParamList, targets: tuple[str, ...], rank: int) -> Adapted[P]:
    """The loss over the adapted list, with the rest of its signature as it is."""

    def adapted(params: Any, *inputs: Any, **named: Any) -> Any:
        return loss(base._layout.build(result._weights(params)), *inputs, **named)

    first = next(iter(inspect.signature(loss).parameters))
    result = Adapted(worn(adapted, loss, {first: type(whole)}), whole, targets, rank, base)
    return result


def _list_class(name: str, fields: Sequence[Field]) -> type[ParamList]:
    """A flat class over these fields; a field's name may have dots in it, as a path has."""
    made: type[ParamList] = type(name, (ParamList,), {"__annotations__": {}, "__module__": __name__})
    made._fields = tuple(fields)
    return made


def _spec(dims: tuple[Dim, ...], dtype: torch.dtype, base: TensorSpec) -> TensorSpec:
    """Of an adapter's matrix: as its base is declared, where that takes the adapter's dtype."""
    return TensorSpec(dims, base.dtypes, base.kind) if dtype in base.dtypes else TensorSpec(dims, (dtype,), "Float32")


def _field(name: str, spec: TensorSpec, entry: Entry) -> Field:
    return Field(name, spec, None, False, {}, None, entry.origin)


def _quantised_fields(entry: Entry) -> list[Field]:
    """What stands for a matrix in four bits; its columns come in whole blocks."""
    rows, columns = entry.spec.dims
    blocks = Dim.parse(f"({columns.text})//{BLOCK}")
    codes = TensorSpec((rows, blocks, Dim(str(BLOCK // 2))), (torch.uint8,), "UInt8")
    scales = TensorSpec((rows, blocks), entry.spec.dtypes, entry.spec.kind)
    return [_field(f"{entry.path}.codes", codes, entry), _field(f"{entry.path}.scales", scales, entry)]


def _refuse(owner: str, params: ParamList, chosen: Sequence[str], base: Base) -> None:
    flat = [n for n in chosen if params[n].dim() != 2 or not params[n].is_floating_point()]
    if flat:
        raise ShapeError(f"{owner}: an adapter goes to a floating-point matrix, and {listing(flat)} is none")
    uneven = [n for n in chosen if params[n].shape[1] % BLOCK]
    if base == "nf4" and uneven:
        raise ShapeError(f"{owner}: NF4 takes columns in blocks of {BLOCK}, and {listing(uneven)} has others")
