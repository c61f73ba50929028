"""The contenders of `steps.py` that run in torch: `python step_torch.py MODEL CONTENDER START.pt DEVICE`."""

import contextlib
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from step_models import BETAS, EPS, LR, MODELS, ON_GPU, WEIGHT_DECAY, Model
from step_worker import Step, serve
from torch import Tensor, nn

from shaped import ParamList, ScalarTrainer

HYPERS: dict[str, Any] = {"lr": LR, "betas": BETAS, "eps": EPS, "weight_decay": WEIGHT_DECAY}


@dataclass(frozen=True)
class Job:
    """What a contender trains: parameters of its own and the batch, on the device."""

    model: Model
    params: Any
    batch: tuple[Tensor, ...]
    device: str

    def loss(self, params: Any, *batch: Tensor) -> Tensor:
        if self.model.autocast is None:
            return self.model.loss(params, *batch)
        with torch.autocast(self.device, self.model.autocast):
            return self.model.loss(params, *batch)


def shaped(job: Job, backend: Any) -> Step:
    trainer = ScalarTrainer(job.model.loss, job.params, backend=backend, autocast=job.model.autocast)
    return lambda: trainer.adamw_step(*job.batch, **HYPERS)


def loop(job: Job, fused: bool | None = None, compiled: bool = False, mode: str | None = None) -> Step:
    """The loop that everyone writes."""
    params, batch = job.params, job.batch
    optimizer = torch.optim.AdamW(list(params), **HYPERS, fused=fused)

    def loss(*inputs: Tensor) -> Tensor:
        return job.loss(params, *inputs)

    run = torch.compile(loss, fullgraph=True, mode=mode) if compiled else loss

    def step() -> Tensor:
        optimizer.zero_grad(set_to_none=True)
        value = run(*batch)
        value.backward()
        optimizer.step()
        return value.detach()

    return step


def whole(job: Job, mode: str | None = None) -> Step:
    """Gradients and update as one compiled function of plain tensors."""
    names = paths(job.model)
    params = [p.detach() for p in job.params]
    first, second = ([torch.zeros_like(p) for p in params] for _ in range(2))
    taken = torch.zeros((), device=job.device)
    (b1, b2), batch = BETAS, job.batch

    def loss(tensors: list[Tensor], *inputs: Tensor) -> Tensor:
        return job.loss(tree(names, tensors), *inputs)

    def take(*inputs: Tensor) -> Tensor:
        gradients, value = torch.func.grad_and_value(loss)(params, *inputs)
        taken.add_(1)
        c1, c2 = 1 - b1**taken, 1 - b2**taken
        for p, g, m, v in zip(params, gradients, first, second, strict=True):
            m.lerp_(g, 1 - b1)
            v.mul_(b2).addcmul_(g, g, value=1 - b2)
            p.mul_(1 - LR * WEIGHT_DECAY).sub_(LR * (m / c1) / ((v / c2).sqrt() + EPS))
        return value

    compiled = torch.compile(take, fullgraph=True, mode=mode)

    def step() -> Tensor:
        with torch.no_grad():
            return compiled(*batch)

    return step


class Tree:
    """Tensors by name: what a loss reads of a ParamList, in a form that Dynamo follows."""

    def __init__(self, fields: Mapping[str, Any]) -> None:
        self.__dict__.update(fields)


def paths(model: Model) -> list[str]:
    """`w1`, `blocks.0.qkv`, ... in order."""
    return [entry.path for entry in model.kind.layout(**model.sizes).entries]


def tree(names: list[str], tensors: list[Tensor]) -> Tree:
    fields: dict[str, Any] = {}
    for path, tensor in zip(names, tensors, strict=True):
        name, *rest = path.split(".")
        if rest:
            fields.setdefault(name, {}).setdefault(int(rest[0]), {})[rest[1]] = tensor
        else:
            fields[name] = tensor
    return Tree({n: [Tree(part) for part in f.values()] if isinstance(f, dict) else f for n, f in fields.items()})


class Wrapped(nn.Module):
    """The same parameters and loss as a module."""

    def __init__(self, job: Job) -> None:
        super().__init__()
        self.values = nn.ParameterList(nn.Parameter(p.detach()) for p in job.params)
        self.tree = tree(paths(job.model), list(self.values))
        self.job = job

    def forward(self, *batch: Tensor) -> Tensor:
        return self.job.model.loss(self.tree, *batch)


def fabric(job: Job) -> Step:
    from lightning.fabric import Fabric

    precision: Any = "bf16-mixed" if job.model.autocast else "32-true"
    runner = Fabric(accelerator="cuda" if job.device == "cuda" else "cpu", devices=1, precision=precision)
    runner.launch()
    plain = Wrapped(job)
    model, optimizer = runner.setup(plain, torch.optim.AdamW(plain.parameters(), **HYPERS, fused=True))

    def step() -> Tensor:
        optimizer.zero_grad(set_to_none=True)
        value = model(*job.batch)
        runner.backward(value)
        optimizer.step()
        return value.detach()

    return step


CONTENDERS: Mapping[str, Callable[[Job], Step]] = {
    "shaped compiled": lambda job: shaped(job, "compiled"),
    "shaped eager": lambda job: shaped(job, "eager"),
    "torch loop, AdamW": lambda job: loop(job),
    "torch loop, fused AdamW": lambda job: loop(job, fused=True),
    "torch.compile loss, fused AdamW": lambda job: loop(job, fused=True, compiled=True),
    "torch.compile whole step": whole,
    "Lightning Fabric, fused AdamW": fabric,
    "torch.compile reduce-overhead, whole step": lambda job: whole(job, "reduce-overhead"),
    "float64": lambda job: loop(job),  # the values that the others must have; never timed
}


def prepare(name: str, contender: str, start: str, device: str) -> Job:
    """The parameters and the batch from a file that the coordinator wrote."""
    model = {**MODELS, **ON_GPU}[name]
    saved = torch.load(start)
    exact = contender == "float64"
    values = [t.double() if exact else t for t in saved["params"]]
    tensors = [t.to(device).requires_grad_() for t in values]
    params: ParamList = model.kind.layout(**model.sizes).build(tensors)
    batch = tuple((t.double() if exact and t.is_floating_point() else t).to(device) for t in saved["batch"])
    return Job(model, params, batch, device)


def main() -> None:
    name, contender, start, device = sys.argv[1:5]
    cuda = device == "cuda"
    job = prepare(name, contender, start, device)
    wait = (lambda loss: torch.cuda.synchronize()) if cuda else (lambda loss: None)
    with contextlib.suppress(BrokenPipeError, KeyboardInterrupt):
        serve(lambda: CONTENDERS[contender](job), wait, torch.cuda.max_memory_allocated if cuda else None)


if __name__ == "__main__":
    main()
