"""Losses over an nn.Module, for a trainer, and functions over a module's parameters."""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn


class Classifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.GroupNorm(2, 8), nn.ReLU(), nn.MaxPool2d(2), nn.Dropout2d(0.1)
        )
        self.head = nn.Linear(8, 10)

    def forward(self, x: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch 10"]:
        return self.head(self.features(x).mean((2, 3)))


def classifier_loss(
    net: Classifier, x: Float[Tensor, "batch 3 height width"], y: Int[Tensor, " batch"]
) -> Float[Tensor, ""]:
    return F.cross_entropy(net(x), y)


def output_loss(logits: Float[Tensor, "batch classes"], y: Int[Tensor, " batch"]) -> Float[Tensor, ""]:
    return F.cross_entropy(logits, y)


class Normalised(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 1))

    def forward(self, x: Float[Tensor, "batch 6"]) -> Float[Tensor, "batch 1"]:
        return self.net(x)


def normalised_loss(net: Normalised, x: Float[Tensor, "batch 6"], y: Float[Tensor, " batch"]) -> Float[Tensor, ""]:
    return F.mse_loss(net(x).squeeze(-1), y)


class Translator(nn.Module):
    def __init__(self, vocab: int = 17, dim: int = 8) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocab, dim)
        self.transformer = nn.TransformerEncoder(
            nn.TransformerEncoderLayer(dim, 2, 16, batch_first=True, norm_first=True), 1, enable_nested_tensor=False
        )
        self.out = nn.Linear(dim, vocab)

    def forward(self, ids: Int[Tensor, "batch seq"]) -> Float[Tensor, "batch seq 17"]:
        return self.out(self.transformer(self.embed(ids)))


def translator_loss(
    net: Translator, ids: Int[Tensor, "batch seq"], targets: Int[Tensor, "batch seq"]
) -> Float[Tensor, ""]:
    return F.cross_entropy(net(ids).transpose(1, 2), targets)


class Tagger(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.GRU(5, 6, batch_first=True)
        self.out = nn.Linear(6, 4)

    def forward(self, x: Float[Tensor, "batch time 5"]) -> Float[Tensor, "batch time 4"]:
        states, _ = self.rnn(x)
        return self.out(states)


def tagger_loss(net: Tagger, x: Float[Tensor, "batch time 5"], y: Int[Tensor, "batch time"]) -> Float[Tensor, ""]:
    return F.cross_entropy(net(x).flatten(0, 1), y.flatten())


HEAD = nn.Linear(6, 3)


def functional_head(
    weight: Float[Tensor, "3 6"], bias: Float[Tensor, " 3"], x: Float[Tensor, "batch 6"]
) -> Float[Tensor, "batch 3"]:
    return torch.func.functional_call(HEAD, {"weight": weight, "bias": bias}, (x,))
