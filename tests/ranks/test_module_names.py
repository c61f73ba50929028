"""Names of the axes of a module's parameters: declared by classes, and said of paths."""

from typing import Annotated, Any

import pytest
import torch
from jaxtyping import Float
from torch import nn

from shaped import ParamList, ShapeError, SignatureError, dims
from shaped.ranks.module_names import NamedEntries, named_entries


class Block(nn.Module):
    up: Annotated[nn.Linear, dims(in_features="dim", out_features="hidden")]
    down: Annotated[nn.Linear, dims(in_features="hidden", out_features="dim")]
    scale: Float[nn.Parameter, " dim"]

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(dim, hidden), nn.Linear(hidden, dim, bias=False)
        self.scale, self.norm = nn.Parameter(torch.ones(dim)), nn.LayerNorm(dim)


class Net(nn.Module):
    tokens: Annotated[nn.Embedding, dims(num_embeddings="vocab", embedding_dim="dim")]
    narrow: Annotated[Block, dims(hidden="inner")]
    pair: Annotated[nn.Sequential, dims(in_features="dim", out_features="dim")]

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.head = nn.Embedding(10, 6), nn.Linear(6, 10, bias=False)
        self.head.weight = self.tokens.weight
        self.blocks, self.narrow = nn.ModuleList([Block(6, 8)]), Block(6, 4)
        self.pair = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6))


def of(module: nn.Module, said: dict[str, str] | None = None) -> NamedEntries:
    return named_entries(ParamList.from_module(module), module, said)


def shown(found: NamedEntries) -> dict[str, str]:
    return {entry.path: " ".join(map(str, entry.spec.dims)) for entry in found.entries}


def test_classes_declare_names_for_parameters_layers_and_modules_within() -> None:
    found = of(Net())

    assert shown(found) == {
        "tokens.weight": "vocab dim",  # tied to head.weight, of which nothing is said
        "blocks.0.scale": "dim", "blocks.0.up.weight": "hidden dim", "blocks.0.up.bias": "hidden",
        "blocks.0.down.weight": "dim hidden", "blocks.0.norm.weight": "6", "blocks.0.norm.bias": "6",
        "narrow.scale": "dim", "narrow.up.weight": "inner dim", "narrow.up.bias": "inner",
        "narrow.down.weight": "dim inner", "narrow.norm.weight": "6", "narrow.norm.bias": "6",
        "pair.0.weight": "dim dim", "pair.0.bias": "dim", "pair.2.weight": "dim dim", "pair.2.bias": "dim",
    }  # fmt: skip
    assert found.sizes == {"vocab": 10, "dim": 6, "hidden": 8, "inner": 4}


def test_names_of_paths_come_before_what_classes_declare_and_may_leave_sizes_open() -> None:
    found = of(Net(), {"*.up.weight": "heads*head dim", "*.up.bias": "heads*head"})

    assert shown(found)["blocks.0.up.weight"] == shown(found)["narrow.up.weight"] == "heads*head dim"
    assert shown(found)["tokens.weight"] == "vocab dim"
    assert found.sizes == {"vocab": 10, "dim": 6, "hidden": 8, "inner": 4}


class Table(ParamList):
    w: Float[torch.Tensor, "a b"]


class Odd(nn.Module):
    layer: Annotated[nn.Linear, dims(out="hidden")]

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)


@pytest.mark.parametrize(
    ("module", "said", "kind", "message"),
    [
        (Net(), {"*.upp.weight": "a b"}, SignatureError, "fits no parameter; did you mean"),
        (Net(), {"*.up.weight": "hidden"}, SignatureError, r"is \[8, 6\], and `hidden` has 1 axes"),
        (Net(), {"*.up.weight": "dim hidden"}, ShapeError, "axis dim is 6, set by tokens.weight"),
        (Net(), {"head.weight": "words dim"}, SignatureError, "tokens.weight and head.weight are one tensor"),
        (Odd(), None, SignatureError, "Linear has the dimensions `in_features` and `out_features`, not `out`"),
    ],
)
def test_names_that_do_not_fit_are_refused(module: nn.Module, said: Any, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        of(module, said)


def test_a_list_of_parameters_has_names_and_takes_no_others() -> None:
    params = Table(w=torch.ones(2, 3))

    assert named_entries(params, None, None).sizes == {"a": 2, "b": 3}
    with pytest.raises(SignatureError, match="names is for modules"):
        named_entries(params, None, {"w": "a b"})
