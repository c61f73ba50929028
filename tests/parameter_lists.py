"""Parameter lists for tests: nested, renamed, anonymous, and what is asked of them."""

from typing import Annotated, Any

import pytest
import torch
from jaxtyping import Float
from torch import Tensor

from shaped import ParamList, dims, init


class MLP(ParamList):
    w1: Float[Tensor, "pixels hidden"]
    b1: Float[Tensor, " hidden"] = init.ones()
    w2: Float[Tensor, "hidden classes"]


class Block(ParamList):
    up: Float[Tensor, "dim 4*dim"]
    scale: Float[Tensor, " dim"] = init.ones()


class GPT(ParamList):
    wte: Float[Tensor, "vocab dim"]
    blocks: list[Block]
    head: Block


class Conv(ParamList):
    kernel: Float[Tensor, "cout cin 3 3"]


class Stage(ParamList):
    first: Annotated[Conv, dims(cin="c", cout="2*c")]
    more: list[Annotated[Conv, dims(cin="2*c", cout="2*c")]] = 2  # type: ignore[assignment]


class Net(ParamList):
    stem: Annotated[Conv, dims(cin="rgb", cout="width")]
    stages: Annotated[list[Stage], dims(c="width + 1")] = 1  # type: ignore[assignment]


def mlp(**options: Any) -> MLP:
    return MLP.init(**{"pixels": 3, "hidden": 2, "classes": 4, **options})


def gpt(**options: Any) -> GPT:
    return GPT.init(**{"vocab": 5, "dim": 2, **options})


anonymous: Any = ParamList  # type checkers do not look at __class_getitem__


def message(error: type[Exception], act: Any) -> str:
    with pytest.raises(error) as caught:
        act()
    return str(caught.value)


def bits(params: ParamList) -> list[bytes]:
    return [tensor.detach().view(torch.uint8).numpy().tobytes() for tensor in params]


def declare(**annotations: Any) -> type[ParamList]:
    return type("Bad", (ParamList,), {"__annotations__": annotations, "__module__": __name__})
