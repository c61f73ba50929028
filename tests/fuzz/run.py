"""Random losses, compiled against eager against plain torch: `python -m tests.fuzz.run --count 60 --seed 7`.

Each takes three steps of AdamW at a large eps, which hides no error of a gradient. Where the loss draws, its first
batch is held against eager by the trainer itself, and the eager steps are those of plain torch under one seed.
"""

import argparse
import importlib.util
import sys
import tempfile
import traceback
import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

from shaped import ProofError, ScalarTrainer, Unprovable
from shaped.backends import inductor
from shaped.errors import first_line
from tests.backends.cases import _default_dtype, share
from tests.backends.noise import spread
from tests.fuzz.drawn import Loss, make

LR, EPS, DECAY = 0.05, 0.01, 0.1
AGREES, UNPROVED, FAILS = "agrees", "unproved", "fails in torch"  # what is no fault of the compiled step
FAULTS = ("eager differs", "compiled differs", "refused", "disagreement", "raw error", "refuted wrongly")


class Subject:
    """A loss of a file, its start and its batches."""

    def __init__(self, loss: Loss, folder: Path) -> None:
        self.loss = loss
        self.file = _imported(loss, folder)
        self.dtype = getattr(torch, loss.dtype)

    def start(self, held: torch.dtype | None = None) -> Any:
        """Parameters or module, rounded to the loss's dtype and held in another."""
        torch.manual_seed(1)
        with _default_dtype(torch.float32):
            made = self.file.start()
        held = held or self.dtype
        if isinstance(made, nn.Module):
            with torch.no_grad():
                for name, p in made.named_parameters():
                    if name.startswith("w"):
                        p.mul_(0.4)
            return made.to(self.dtype).to(held)
        return made.layout().build([(0.4 * p.detach()).to(self.dtype).to(held).requires_grad_() for p in made])

    def batches(self, held: torch.dtype | None = None) -> list[list[Tensor]]:
        generator = torch.Generator().manual_seed(2)
        batches = []
        for sizes in self.loss.sizes:
            batch = []
            for kind, dims, classes in self.loss.inputs:
                shape = [dim if isinstance(dim, int) else sizes[dim] for dim in dims]
                if kind == "Int":
                    batch.append(torch.randint(0, classes, shape, generator=generator))
                else:
                    drawn = torch.randn(shape, generator=generator, dtype=torch.float32)
                    batch.append(drawn.to(self.dtype).to(held or self.dtype))
            batches.append(batch)
        return batches

    def plain(self, held: torch.dtype) -> list[Tensor]:
        """Losses, parameters and buffers of plain torch."""
        with _default_dtype(held):
            net = self.start(held)
            trained = list(net.parameters() if isinstance(net, nn.Module) else net)
            optimizer = torch.optim.AdamW(trained, lr=LR, eps=EPS, weight_decay=DECAY, foreach=False)
            losses = []
            torch.manual_seed(3)
            for batch in self.batches(held):
                optimizer.zero_grad()
                value = self.file.loss(net, *batch)
                value.backward()
                optimizer.step()
                losses.append(value.detach())
        return [*losses, *(p.detach() for p in trained), *_buffers(net)]

    def trained(self, backend: Any) -> list[Tensor]:
        """The same of a trainer."""
        with _default_dtype(self.dtype):
            net = self.start()
            trainer = ScalarTrainer(self.file.loss, net, backend=backend, sizes=self.loss.mode, allow_unused=True)
            torch.manual_seed(3)
            losses = [
                trainer.adamw_step(*batch, lr=LR, eps=EPS, weight_decay=DECAY).detach().clone()
                for batch in self.batches()
            ]
        return [*losses, *(p.detach() for p in trainer.params if p.requires_grad), *_buffers(net)]


def judge(loss: Loss, folder: Path) -> tuple[str, str]:
    """The verdict on a loss, and what was said."""
    subject = Subject(loss, folder)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            exact, bounds = spread(lambda: subject.plain(torch.float64), torch.finfo(subject.dtype).eps)
            plain = subject.plain(subject.dtype)
        except RuntimeError as error:
            return FAILS, first_line(error)
        if not max(bounds) < torch.inf or not all(bool(v.isfinite().all()) for v in plain):
            return FAILS, "not finite"
        try:
            eager = subject.trained("eager")
            part = _part(plain, eager, exact, bounds, loss.draws)
            if not part <= 1:
                return "eager differs", f"by {part:.2g} of its bound"
            compiled = subject.trained("compiled")
            part = 0.0 if loss.draws else _part(plain, compiled, exact, bounds, False)
        except Unprovable as error:
            return UNPROVED, str(error)
        except ProofError as error:
            return "refuted wrongly", str(error)
        except Exception as error:
            kind = "disagreement" if "is not the program" in str(error) else "refused"
            ours = type(error).__module__.startswith("shaped.") or type(error) is ValueError
            return kind if ours else "raw error", "".join(traceback.format_exception_only(error))
    return (AGREES, f"{part:.2g}") if part <= 1 else ("compiled differs", f"by {part:.2g} of its bound")


def _part(
    plain: Sequence[Tensor], found: Sequence[Tensor], exact: Sequence[Tensor], bounds: Sequence[float], draws: bool
) -> float:
    """How much of its bound a run takes. What draws other numbers in float64 is held against torch in its own dtype."""
    return share(found, plain if draws else exact, bounds)


def _buffers(net: Any) -> list[Tensor]:
    buffers = net.buffers() if isinstance(net, nn.Module) else ()
    return [b.detach().clone() for b in buffers if b.is_floating_point()]


def _imported(loss: Loss, folder: Path) -> ModuleType:
    name = f"loss_{loss.number.replace(':', '_').replace('-', '_')}"
    path = folder / f"{name}.py"
    path.write_text(loss.source)
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, print the losses that went wrong and the counts; 1 if one did."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=60, help="how many losses")
    parser.add_argument("--seed", type=int, default=0, help="which losses")
    parser.add_argument("--first", type=int, default=0, help="the number of the first one")
    parser.add_argument("--all", action="store_true", help="print also what is no fault")
    parser.add_argument("--interpreted", action="store_true", help="run graphs as they are traced: no C++ compiler")
    options = parser.parse_args(arguments)
    compiler = (lambda: False) if options.interpreted else inductor.has_cpp_compiler
    counts: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder, patch.object(inductor, "has_cpp_compiler", compiler):
        for index in range(options.first, options.first + options.count):
            loss = make(options.seed, index)
            kind, said = judge(loss, Path(folder))
            counts[kind] += 1
            if kind in FAULTS:
                print(
                    f"--- {loss.number} {kind} ({loss.dtype}, {loss.mode}, {loss.sizes})\n{said}\n{loss.source}",
                    flush=True,
                )
            elif options.all:
                first = said.strip().partition("\n")[0]
                print(f"{loss.number} {kind}: {first} {loss.dtype} {' '.join(loss.kinds)}", flush=True)
    print("\n".join(f"{kind:<18}{counts[kind]:>5}" for kind in (*FAULTS, AGREES, UNPROVED, FAILS)))
    return int(any(counts[kind] for kind in FAULTS))


if __name__ == "__main__":
    sys.exit(main())
