"""The parameters of a module as a list."""

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


class Clash(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.values = nn.Parameter(torch.zeros(2))


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
            Clash(),
            SignatureError,
            "Clash: no entry may be named `values`: ParamList keeps its own attributes, and names with an underscore "
            "in front, for itself",
        ),
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
