"""A small GPT over the bytes of Python's standard library: from proof to sample, resumable at any step."""

import math
import time
from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Generator, Tensor
from torch.optim.lr_scheduler import LambdaLR

from shaped import files, init
from shaped.checkpoint import Checkpoints
from shaped.data import Windows, stdlib_text
from shaped.errors import ShapedError
from shaped.given import GivenOptimizer
from shaped.loop import Curves, JsonLines, Loop, Progress
from shaped.losses import cross_entropy
from shaped.optim import SGD, Adam, AdamW, Lion, Muon
from shaped.params import ParamList
from shaped.ranks import say
from shaped.recipes import Outcome, Settings
from shaped.trainer import ScalarTrainer

DIM, LAYERS, CONTEXT = 128, 4, 128
BATCH, STEPS_PER_EPOCH, EPOCHS, WARMUP = 16, 250, 18, 100


class Block(ParamList):
    norm1: Float[Tensor, " dim"] = init.ones()
    qkv: Float[Tensor, "dim 3*dim"] = init.normal(0.05)
    out: Float[Tensor, "dim dim"] = init.normal(0.02)
    norm2: Float[Tensor, " dim"] = init.ones()
    up: Float[Tensor, "dim 4*dim"] = init.normal(0.05)
    down: Float[Tensor, "4*dim dim"] = init.normal(0.02)


class GPT(ParamList):
    tokens: Float[Tensor, "vocab dim"] = init.normal(0.05)
    places: Float[Tensor, "context dim"] = init.normal(0.02)
    blocks: list[Block]
    norm: Float[Tensor, " dim"] = init.ones()


def attention(x: Tensor, block: Block, heads: int) -> Tensor:
    b, t, d = x.shape
    q, k, v = (part.view(b, t, heads, d // heads).transpose(1, 2) for part in (x @ block.qkv).chunk(3, dim=-1))
    mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    return mixed.transpose(1, 2).reshape(b, t, d) @ block.out


def logits(p: GPT, x: Int[Tensor, "batch seq"], heads: int = 4) -> Float[Tensor, "batch seq vocab"]:
    h = p.tokens[x] + p.places[: x.shape[1]]
    for block in p.blocks:
        h = h + attention(F.layer_norm(h, (h.shape[-1],), block.norm1), block, heads)
        h = h + F.gelu(F.layer_norm(h, (h.shape[-1],), block.norm2) @ block.up) @ block.down
    return F.layer_norm(h, (h.shape[-1],), p.norm) @ p.tokens.T


def loss(p: GPT, x: Int[Tensor, "batch seq"], y: Int[Tensor, "batch seq"]) -> Float[Tensor, ""]:
    return cross_entropy(logits(p, x), y)


def make_optimizer(name: str, params: GPT) -> GivenOptimizer:
    """Each rule with a learning rate that suits it here; matrices decay, gains do not (with Muon, all do)."""
    if name == "sgd":
        return SGD(params, lr=0.3, momentum=0.9, nesterov=True)
    if name == "adam":
        return Adam(params, lr=2e-3, betas=(0.9, 0.95))
    matrices, gains = ([p for p in params if (p.dim() > 1) == wide] for wide in (True, False))
    groups: list[dict[str, Any]] = [{"params": matrices, "weight_decay": 0.1}, {"params": gains, "weight_decay": 0.0}]
    if name == "muon":
        return partial(Muon, lr=8e-3, weight_decay=0.1, others={"betas": (0.9, 0.95)})
    if name == "lion":
        return Lion([{**group, "weight_decay": 5 * group["weight_decay"]} for group in groups], lr=4e-4)
    return AdamW(groups, lr=2e-3, betas=(0.9, 0.95))


def warm_up_and_cosine(warmup: int, total: int, floor: float = 0.05) -> "WarmupCosine":
    """The learning rate as a share of its peak: linear up to `warmup` updates, then a cosine down to `floor`."""
    return WarmupCosine(warmup, total, floor)


class WarmupCosine:
    """A function of the update's number; a plain object, so that a scheduler saves it."""

    def __init__(self, warmup: int, total: int, floor: float) -> None:
        self.warmup, self.total, self.floor = min(warmup, max(total // 4, 1)), total, floor

    def __call__(self, step: int) -> float:
        if step < self.warmup:
            return (step + 1) / self.warmup
        done = min((step - self.warmup) / max(self.total - self.warmup, 1), 1.0)
        return self.floor + (1 - self.floor) * 0.5 * (1 + math.cos(math.pi * done))


def train(settings: Settings) -> Outcome:
    """Prove, train with validation and checkpoints, and print losses, a bigram model's, and a sample of text."""
    folder, mesh = settings.folder("charlm"), settings.mesh()
    checkpoints = Checkpoints(folder / "checkpoints", every=STEPS_PER_EPOCH, keep=2, best="validation/loss")
    if checkpoints.steps() and not settings.goes_on:
        raise ShapedError(f"{folder} has checkpoints: go on from them with --resume, or choose another --out")
    epochs = EPOCHS if settings.epochs is None else settings.epochs
    params = GPT.init(vocab=256, dim=DIM, context=CONTEXT, blocks=LAYERS, seed=settings.seed, device=settings.device)
    optimizer = make_optimizer(settings.optimizer, params)
    trainer = ScalarTrainer(loss, params, backend=settings.backend, optimizer=optimizer, max_norm=1.0,
                            keep=settings.keep, mesh=mesh, zero=settings.zero if mesh is not None else 0)  # fmt: skip
    say(trainer.proof)
    text, held_out = stdlib_text("train"), stdlib_text("validation")
    say(f"data         {len(text) / 1e6:.1f} MB to train on, {len(held_out) / 1e6:.1f} MB held out; "
        f"{sum(p.numel() for p in params):,} parameters")  # fmt: skip
    data, validation = windows(text, settings), validation_windows(held_out, settings.device)
    bigram = bigram_loss(text, validation)
    assert trainer.optimizer is not None
    schedule = LambdaLR(trainer.optimizer, warm_up_and_cosine(WARMUP, epochs * STEPS_PER_EPOCH))
    loop = Loop(trainer, schedule=schedule)
    log = loop.attach(JsonLines(folder / "log.jsonl", every=10))
    curves = loop.attach(Curves(log.path))
    loop.attach(Progress("charlm", seconds=20))
    loop.attach(checkpoints)
    loop.every_n_steps(STEPS_PER_EPOCH, lambda loop: loop.evaluate(validation), name="validate")
    if settings.goes_on:
        say(checkpoints.resume(loop))
    began = time.perf_counter()
    loop.run_epochs(data, epochs)
    seconds = time.perf_counter() - began
    reached = loop.evaluate(validation)["validation/loss"]
    say(f"validation   {reached:.3f} nats a byte after {loop.step} steps ({seconds:.0f} s now); a bigram model has "
        f"{bigram:.3f} on the same bytes")  # fmt: skip
    written = sample(cast(GPT, trainer.get_params()), b"def ", 400, seed=settings.seed)
    say(f"a sample\n{written}")
    if trainer.peers.leads:
        files.replace(folder / "sample.txt", written.encode())
    checkpoints.close()
    figures = {"validation": reached, "bigram": bigram, "seconds": seconds, "steps": float(loop.step)}
    return Outcome(figures, (log.path, curves.picture, folder / "sample.txt"))


def windows(text: Tensor, settings: Settings) -> Windows:
    """Training batches; an epoch is a number of them, not a pass over the text."""
    return Windows(text, batch_size=BATCH, length=CONTEXT, batches=STEPS_PER_EPOCH, seed=settings.seed,
                   device=settings.device)  # fmt: skip


def validation_windows(text: Tensor, device: str) -> list[tuple[Tensor, Tensor]]:
    """The same 50,000 or so bytes at every evaluation, whatever the seed."""
    return list(Windows(text, batch_size=BATCH, length=CONTEXT, batches=24, seed=1, device=device).iterate(0))


def bigram_loss(text: Tensor, validation: list[tuple[Tensor, Tensor]]) -> float:
    """Mean loss in nats a byte of the model p(next | previous) = counts of pairs in the text, plus a tenth."""
    pairs = text[:-1].long() * 256 + text[1:].long()
    counts = torch.bincount(pairs, minlength=256 * 256).double().view(256, 256) + 0.1
    table = -(counts / counts.sum(1, keepdim=True)).log()
    losses = torch.cat([table[x.cpu().flatten(), y.cpu().flatten()] for x, y in validation])
    return losses.mean().item()


@torch.no_grad()
def sample(params: GPT, prompt: bytes, length: int, seed: int, temperature: float = 0.7) -> str:
    """Text that the model goes on with after a prompt."""
    generator = Generator().manual_seed(seed % 2**63)
    found = torch.tensor([list(prompt)], device=params.device)
    for _ in range(length):
        last = logits(params, found[:, -CONTEXT:])[0, -1].float().cpu()
        drawn = torch.multinomial((last / temperature).softmax(0), 1, generator=generator)
        found = torch.cat([found, drawn.to(found.device).view(1, 1)], dim=1)
    return bytes(found[0].tolist()).decode("utf-8", errors="replace")
