"""LoRA over modules: `nn.Linear` layers beside which a low-rank product runs, with the layer itself frozen.

    y = base_layer(x) + alpha/rank * (x @ lora_A.T) @ lora_B.T

The names, the orientation ([rank, in] and [out, rank]), the first values and the dtype are PEFT's: beside a base of
bfloat16 or float16 the adapter is float32, and its product is rounded once, where it is added.
"""

import copy
import math
from collections.abc import Iterator, Sequence
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn

from shaped.arguments import checked
from shaped.errors import ShapeError, listing
from shaped.lora.names import adapter_dtype, check_rank, matching
from shaped.lora.nf4 import BLOCK, Nf4Product, dequantise_nf4, quantise_nf4

M = TypeVar("M", bound=nn.Module)


class Nf4Linear(nn.Module):
    """A frozen linear layer whose weight is kept in NF4. The bias, if there is one, stays as it is."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        codes, scales = quantise_nf4(layer.weight)
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.register_buffer("codes", codes)  # uint8 [out, in//64, 32]
        self.register_buffer("scales", scales)  # [out, in//64]
        self.bias = layer.bias

    def weight_now(self) -> Tensor:
        """The weight that the codes stand for: [out, in]."""
        return dequantise_nf4(self.get_buffer("codes"), self.get_buffer("scales"))

    def forward(self, x: Tensor) -> Tensor:
        """x @ weight.T + bias: [..., in] to [..., out]."""
        product: Tensor = Nf4Product.apply(x, self.get_buffer("codes"), self.get_buffer("scales"))
        return product if self.bias is None else product + self.bias


class LoraLinear(nn.Module):
    """A frozen linear layer with a low-rank product beside it; made by `inject`."""

    @checked
    def __init__(
        self, layer: nn.Linear, rank: int, alpha: float, generator: torch.Generator, base: Literal["float", "nf4"]
    ) -> None:
        super().__init__()
        self.base_layer: nn.Linear | Nf4Linear = layer if base == "float" else Nf4Linear(layer)
        self.rank = rank
        # A buffer, so that states carry it; in float64, so that it is the number that was given.
        self.register_buffer("lora_alpha", torch.tensor(float(alpha), dtype=torch.float64, device=layer.weight.device))
        bound = 1 / math.sqrt(layer.in_features)
        drawn = torch.empty(rank, layer.in_features).uniform_(-bound, bound, generator=generator)
        place: Any = {"dtype": adapter_dtype(layer.weight.dtype), "device": layer.weight.device}
        self.lora_A = nn.Parameter(drawn.to(**place))
        self.lora_B = nn.Parameter(torch.zeros(layer.out_features, rank, **place))
        self._unmerged: tuple[Any, ...] = ()  # the base's weight while another stands in its place
        self.register_state_dict_post_hook(_save_unmerged)
        self.register_load_state_dict_pre_hook(_unmerge_first)

    @property
    def weight(self) -> Tensor:
        """The weight that it computes with: [out, in]. A transformer's fast path reads it, and a head that is tied."""
        base = self.base_layer.weight_now() if isinstance(self.base_layer, Nf4Linear) else self.base_layer.weight
        return base if self.merged else (base + self.delta()).to(base.dtype)

    @property
    def bias(self) -> Tensor | None:
        """The base's."""
        return self.base_layer.bias

    @property
    def alpha(self) -> float:
        """The product's scale is alpha/rank."""
        return self.get_buffer("lora_alpha").item()

    @property
    def merged(self) -> bool:
        """Whether the product is part of the base's weight now."""
        return bool(self._unmerged)

    def delta(self) -> Tensor:
        """What the adapter adds to the weight: [out, in]."""
        return self.get_buffer("lora_alpha") / self.rank * (self.lora_B @ self.lora_A)

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] to [..., out]."""
        y: Tensor = self.base_layer(x)
        if self.merged:
            return y
        product = (x.to(self.lora_A.dtype) @ self.lora_A.T) @ self.lora_B.T
        return (y + self.get_buffer("lora_alpha") / self.rank * product).to(y.dtype)

    def merge(self) -> None:
        """Put the sum in the place of the base's weight, which is kept aside. A second call does nothing.

        Raises:
            ValueError: The base is in NF4, where the sum would be rounded.
        """
        if isinstance(self.base_layer, Nf4Linear):
            raise ValueError("a base in NF4 would be rounded again; merged(module) gives a copy with full weights")
        if not self.merged:
            self._unmerged = (self.base_layer.weight,)
            with torch.no_grad():
                whole = (self.base_layer.weight + self.delta()).to(self.base_layer.weight.dtype)
            self.base_layer.weight = nn.Parameter(whole, requires_grad=False)

    def unmerge(self) -> None:
        """Put the base's weight back."""
        if self._unmerged and isinstance(self.base_layer, nn.Linear):
            (weight,), self._unmerged = self._unmerged, ()
            weight.data = weight.data.to(self.base_layer.weight)  # the module may have been moved
            self.base_layer.weight = weight

    def plain(self) -> nn.Linear:
        """One linear layer that computes the same, up to rounding."""
        base = self.base_layer
        weight = base.weight_now() if isinstance(base, Nf4Linear) else base.weight
        made = nn.Linear(base.in_features, base.out_features, base.bias is not None, weight.device, weight.dtype)
        with torch.no_grad():
            made.weight.copy_(weight if self.merged else weight + self.delta())
            if base.bias is not None:
                made.bias.copy_(base.bias)
        return made


def _save_unmerged(part: nn.Module, state: dict[str, Any], prefix: str, metadata: Any) -> None:
    """A merged layer saves the base as it is without the product, which would count twice where both are loaded."""
    assert isinstance(part, LoraLinear)
    if part._unmerged:
        state[f"{prefix}base_layer.weight"] = part._unmerged[0].detach()


def _unmerge_first(part: nn.Module, *rest: Any) -> None:
    """A merged layer that loads a state is no longer merged."""
    assert isinstance(part, LoraLinear)
    part.unmerge()


@checked
def inject(
    module: nn.Module,
    targets: Sequence[str],
    *,
    rank: int = 8,
    alpha: float = 8.0,
    seed: int = 0,
    base: Literal["float", "nf4"] = "float",
) -> tuple[str, ...]:
    """Put low-rank adapters beside linear layers of a module, in place, and freeze everything else.

    At first lora_B is 0 and the module computes what it did. `ScalarTrainer(loss, module, save_frozen=False)` then
    proves and trains the adapters alone.

    Args:
        module: Its `nn.Linear` layers are the candidates.
        targets: Names, ends of names (PEFT's target_modules), or patterns: `"q_proj"`, `"layers.*.mlp"`.
        rank, alpha: The product's size, and its scale alpha/rank. PEFT's defaults.
        seed: Draws lora_A, uniform in ±1/sqrt(in), as PEFT's does.
        base: "float" keeps the layers as they are, "nf4" keeps their weights in four bits.

    Returns:
        The names of the layers that now have an adapter.

    Raises:
        ShapeError: A target means no linear layer, or one whose weight is another's too; or, under "nf4", one whose
            inputs do not divide by 64. ValueError: `rank`, `alpha` or `base` is not usable. Nothing has changed.
    """
    check_rank(rank, alpha)
    owner = type(module).__name__
    if any(isinstance(part, LoraLinear) for part in module.modules()):
        raise ShapeError(f"{owner} has adapters already; merged(module) is a plain copy")
    linear = {name: part for name, part in module.named_modules() if type(part) is nn.Linear and name}
    if not linear:
        raise ShapeError(f"{owner} has no torch.nn.Linear inside")
    chosen = matching(owner, list(linear), targets)
    made = [name for name in chosen if "weight" not in linear[name]._parameters]
    if made:
        raise ShapeError(
            f"{owner}: the weight of {listing(made)} is computed from other parameters, as pruning does; make it a "
            "parameter first (torch.nn.utils.prune.remove)"
        )
    counts: dict[int, int] = {}
    for _, parameter in module.named_parameters(remove_duplicate=False):
        counts[id(parameter)] = counts.get(id(parameter), 0) + 1
    tied = [name for name in chosen if counts[id(linear[name].weight)] > 1]
    uneven = [name for name in chosen if linear[name].in_features % BLOCK]
    if tied:
        raise ShapeError(f"{owner}: the weight of {listing(tied)} is another's too, which would change with it")
    if base == "nf4" and uneven:
        raise ShapeError(f"{owner}: NF4 takes inputs in blocks of {BLOCK}, and {listing(uneven)} has others")
    generator = torch.Generator().manual_seed(seed)
    module.requires_grad_(False)
    for name in chosen:
        _replace(module, name, LoraLinear(linear[name], rank, alpha, generator, base))
    return tuple(chosen)


def adapters(module: nn.Module) -> Iterator[tuple[str, LoraLinear]]:
    """The layers with an adapter, by name."""
    return ((name, part) for name, part in module.named_modules() if isinstance(part, LoraLinear))


@checked
def merge(module: nn.Module) -> None:
    """Add each adapter to its layer's weight, for inference at the base's speed; `unmerge` takes it back bit for bit.

    While merged, a trainer over the module refuses to run, and no new one can be made. States are those of the module
    before; `module.load_state_dict` unmerges.

    Raises:
        ValueError: A base is in NF4. Nothing has changed.
    """
    parts = [part for _, part in adapters(module)]
    for part in sorted(parts, key=lambda part: isinstance(part.base_layer, nn.Linear)):  # what refuses comes first
        part.merge()


@checked
def unmerge(module: nn.Module) -> None:
    """Put the bases' weights back."""
    for _, part in adapters(module):
        part.unmerge()


@checked
def merged(module: M) -> M:
    """A copy of the module with plain linear layers that have the adapters in their weights."""
    made = copy.deepcopy(module)
    for name, part in list(adapters(made)):
        _replace(made, name, part.plain().requires_grad_(False))
    return made


def _replace(module: nn.Module, name: str, part: nn.Module) -> None:
    parent, _, last = name.rpartition(".")
    setattr(module.get_submodule(parent), last, part)
