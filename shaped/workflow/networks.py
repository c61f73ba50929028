"""Ready models for tables, by name: a network for classes, a network and a line for a number."""

from typing import Any

import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from shaped import init
from shaped.losses import cross_entropy, mse
from shaped.params import ParamList
from shaped.workflow.models import ModelProvider


class TabularMLP(ParamList):
    """Two layers with a rectifier between them."""

    w1: Float[Tensor, "features hidden"] = init.fan_in(gain=2.4)  # keeps the variance through relu
    b1: Float[Tensor, " hidden"] = init.zeros()
    w2: Float[Tensor, "hidden classes"]
    b2: Float[Tensor, " classes"] = init.zeros()


class Regressor(ParamList):
    """Two layers with a rectifier between them, and one number at the end."""

    w1: Float[Tensor, "features hidden"] = init.fan_in(gain=2.4)
    b1: Float[Tensor, " hidden"] = init.zeros()
    w2: Float[Tensor, " hidden"] = init.normal(0.05)
    b2: Float[Tensor, ""] = init.zeros()


class Linear(ParamList):
    """A weight for each feature, and a constant."""

    w: Float[Tensor, " features"] = init.zeros()
    b: Float[Tensor, ""] = init.zeros()


def mlp_logits(p: TabularMLP, x: Float[Tensor, "batch features"]) -> Float[Tensor, "batch classes"]:
    """Logits of the classes."""
    return F.relu(x @ p.w1 + p.b1) @ p.w2 + p.b2


def mlp_loss(p: TabularMLP, x: Float[Tensor, "batch features"], y: Int[Tensor, " batch"]) -> Float[Tensor, ""]:
    """Cross-entropy in nats."""
    return cross_entropy(mlp_logits(p, x), y)


def regressor_value(p: Regressor, x: Float[Tensor, "batch features"]) -> Float[Tensor, " batch"]:
    """A number for each row."""
    return F.relu(x @ p.w1 + p.b1) @ p.w2 + p.b2


def regressor_loss(p: Regressor, x: Float[Tensor, "batch features"], y: Float[Tensor, " batch"]) -> Float[Tensor, ""]:
    """Mean squared error."""
    return mse(regressor_value(p, x), y)


def linear_value(p: Linear, x: Float[Tensor, "batch features"]) -> Float[Tensor, " batch"]:
    """A number for each row."""
    return x @ p.w + p.b


def linear_loss(p: Linear, x: Float[Tensor, "batch features"], y: Float[Tensor, " batch"]) -> Float[Tensor, ""]:
    """Mean squared error."""
    return mse(linear_value(p, x), y)


def mlp_classifier(**defaults: Any) -> ModelProvider:
    """A two-layer network over a table, with `hidden` units (32), for classes."""
    return ModelProvider(
        TabularMLP, mlp_loss, predict=mlp_logits, name="mlp_classifier", defaults={"hidden": 32, **defaults}
    )


def mlp_regressor(**defaults: Any) -> ModelProvider:
    """A two-layer network over a table, with `hidden` units (32), for a number."""
    defaults = {"hidden": 32, **defaults}
    return ModelProvider(Regressor, regressor_loss, predict=regressor_value, name="mlp_regressor", defaults=defaults)


def linear_regressor(**defaults: Any) -> ModelProvider:
    """A linear model of a number."""
    return ModelProvider(Linear, linear_loss, predict=linear_value, name="linear_regressor", defaults=defaults)
