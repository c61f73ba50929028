"""The parameters of a module as a list."""

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import nn

from shaped import ParamList, ShapedError, ShapeError, SignatureError
from tests.parameter_lists import MLP, message


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(5, 3)
        self.norm = nn.BatchNorm1d(3)
        self.head = nn.Linear(3, 5, bias=False)
        self.head.weight = self.embed.weight


def test_a_module_is_read_under_its_own_names_with_tied_weights_once_and_buffers_without_gradient() -> None:
    module = Tied()
    params = ParamList.from_module(module)

    assert dict(zip(params.names, params.requires_grad, strict=True)) == {
        "embed.weight": True,
        "norm.weight": True,
        "norm.bias": True,
        "norm.running_mean": False,
        "norm.running_var": False,
        "norm.num_batches_tracked": False,
    }
    assert params["embed.weight"] is module.embed.weight
    assert [str(entry.spec) for entry in params.entries] == ["[5, 3]", "[3]", "[3]", "[3]", "[3]", "[]"]
    assert [entry.spec.kind for entry in params.entries[-2:]] == ["Float32", "Int64"]
    assert type(params).__name__ == "Tied"


def test_a_frozen_parameter_of_a_module_stays_frozen() -> None:
    module = nn.Linear(2, 3)
    module.bias.requires_grad_(False)

    assert ParamList.from_module(module).requires_grad == (True, False)


NAMES: tuple[str, ...] = (
    "values",
    "dims",
    "init",
    "like",
    "_layout",
    "_tensors",
    "_binding",
    "_fields",
    "__len__",
    "_private",
)
NAMES += ("self", "0", "class", "a b", "é", "a/b", "a-b")  # fmt: skip


class Named(nn.Module):
    """Every name that nn.Module allows."""

    def __init__(self) -> None:
        super().__init__()
        for i, name in enumerate(NAMES):
            self.register_parameter(name, nn.Parameter(torch.full((2,), float(i))))
        self.register_buffer("_buffer", torch.ones(2))
        self._transform = nn.Linear(2, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for name in NAMES:
            x = torch.tanh(x + self.get_parameter(name))
        result: torch.Tensor = self._transform(x) * self.get_buffer("_buffer")
        return result


def test_every_name_that_a_module_allows_is_an_entry() -> None:
    module = Named()
    params = ParamList.from_module(module)

    assert params.names == (*NAMES, "_transform.weight", "_transform.bias", "_buffer")
    assert all(params[name] is module.get_parameter(name) for name in (*NAMES, "_transform.weight"))
    assert params.values()["values"].tolist() == [0.0, 0.0]
    assert params.like(params.tensors)["_layout"].shape == (2,)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda thing: pickle.loads(pickle.dumps(thing))])
@pytest.mark.parametrize("module", [Named(), Tied()], ids=lambda module: type(module).__name__)
def test_a_list_that_was_read_from_a_module_is_copied_and_pickled(copied: Any, module: nn.Module) -> None:
    params = ParamList.from_module(module)
    other = copied(params)

    assert (other.names, other.requires_grad, type(other).__name__) == (
        params.names,
        params.requires_grad,
        type(params).__name__,
    )
    assert all(torch.equal(a, b) and a is not b for a, b in zip(other, params, strict=True))


class Shared(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.zeros(2))
        self.b = nn.Parameter(self.a.detach())


@pytest.mark.parametrize(
    ("module", "error", "text"),
    [
        (nn.ReLU(), ShapeError, "ReLU has no parameters"),
        (
            nn.LazyLinear(3),
            ShapeError,
            "LazyLinear has no shape yet for `weight` and `bias`: run the module once",
        ),
        (3, SignatureError, "ParamList.from_module(an int): write ParamList.from_module(nn.Module)"),
        (None, SignatureError, "ParamList.from_module(a NoneType): write ParamList.from_module(nn.Module)"),
        (
            Shared(),
            ShapeError,
            "`a` and `b` share memory: keep one entry and use it twice in the loss, or clone one",
        ),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_a_module_that_cannot_be_a_list_is_refused(module: Any, error: type[ShapedError], text: str) -> None:
    assert message(error, lambda: ParamList.from_module(module)) == text


def test_a_class_reads_no_module() -> None:
    assert message(SignatureError, lambda: MLP.from_module(nn.Linear(2, 3))) == (
        "MLP.from_module(a Linear): write ParamList.from_module(nn.Module)"
    )
