"""A small run of several ranks as threads: replicated parameters, and a step that averages over the ranks."""

import threading
from functools import cache, partial
from types import SimpleNamespace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from shaped import Loop, ParamList, ScalarTrainer
from shaped.data import Batches
from shaped.ranks import Peers, Piece, Placement, Rows


class Line(ParamList):
    w: Float[Tensor, " inputs"]


def loss(p: Line, x: Float[Tensor, "batch inputs"], y: Float[Tensor, " batch"]) -> Float[Tensor, ""]:
    return (x @ p.w - y).square().mean()


def examples(count: int = 22) -> tuple[Tensor, Tensor]:
    x = torch.randn(count, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return x, x @ torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)


def batches(size: int = 4, **options: Any) -> Batches:
    return Batches(*examples(), batch_size=size, seed=0, **options)


class Exchange(SimpleNamespace):
    """What a trainer's ranks exchange, as far as a loop asks it."""

    rank: int
    size: int
    weight: float


_PROVING = threading.Lock()


@cache
def proved() -> ScalarTrainer:
    """A trainer whose proof all ranks of all tests share."""
    return ScalarTrainer(loss, Line(w=torch.zeros(3, dtype=torch.float64)))


class Shared:
    """The state of the proved trainer, but for what loads one."""

    def __init__(self, load: Any) -> None:
        self._load = load

    def ready(self, state: Any) -> Any:
        return partial(self._load, state)

    def __getattr__(self, name: str) -> Any:
        return getattr(proved()._shared, name)


class Replica(ScalarTrainer):
    """A trainer of one rank that shares its proof with the others, since a proof takes longer than these runs."""

    def __init__(self, peers: Peers) -> None:
        with _PROVING:
            vars(self).update({name: thing for name, thing in vars(proved()).items() if name != "_shared"})
        self.own = Line(w=torch.zeros(3, dtype=torch.float64))
        self.among: tuple[Peers, Any] = (peers, None)
        self.of = Placement((3,), peers.size).bounds(peers.rank)

    @property
    def params(self) -> ParamList:
        return self.own

    @property
    def peers(self) -> Peers:
        return self.among[0]

    @property
    def ranks(self) -> Any:
        return self.among[1]

    @property
    def rows(self) -> Rows | None:
        return Rows(self.peers.rank, self.peers.size, "batch") if self.peers.size > 1 else None

    @property
    def zero(self) -> Any:
        return 0

    @property
    def returned(self) -> Any:
        return None

    def forward(self, *rows: Any, **named: Any) -> Tensor:
        with torch.no_grad():
            return loss(self.own, *rows)

    def count(self, *rows: Any, **named: Any) -> float:
        return float(len(rows[0]))

    def state_dict(self, *, parts: bool = False) -> dict[str, Any]:
        w: Any = self.own.w.detach().clone()
        w = Piece(w[slice(*self.of)].clone(), (3,), self.of[0]) if parts else w
        return {"signature": {"w": 'Float "inputs"'}, "params": {"w": w}, "t": torch.tensor(7)}

    @property
    def _shared(self) -> Any:  # type: ignore[override]
        """What a loop asks whether a state fits, and for what takes it over."""
        return Shared(self.load_state_dict)

    def load_state_dict(self, state: Any) -> None:
        with torch.no_grad():
            w = state["params"]["w"]
            self.own.w[slice(*self.of) if isinstance(w, Piece) else slice(None)] = (
                w.tensor if isinstance(w, Piece) else w
            )


def loop_of(peers: Peers, lr: float = 0.05, **options: Any) -> Loop:
    """A loop on one of several ranks, or alone."""
    trainer = Replica(peers)
    exchange = Exchange(rank=peers.rank, size=peers.size, weight=1.0)
    trainer.among = peers, exchange

    def step(*rows: Tensor) -> Tensor:
        value = loss(trainer.own, *rows)
        gradient = torch.autograd.grad(value, trainer.own.w)[0]
        weight = trainer.count(*rows) * exchange.weight
        told = peers.tell("a step", (weight, value.detach() * weight, gradient * weight))
        samples = sum(w for w, _, _ in told)
        with torch.no_grad():
            trainer.own.w.sub_(lr * sum(g for _, _, g in told) / samples)
        return sum(v for _, v, _ in told) / samples

    return Loop(trainer, step, **options)
