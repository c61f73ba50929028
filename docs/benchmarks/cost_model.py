"""A model of a step's time and memory on many ranks, from the proved graph's own flops and bytes: not a measurement.

    python docs/benchmarks/cost_model.py                       the table for GPTs up to 70 B on 8 to 4,096 ranks
    torchrun --standalone --nproc-per-node 2 docs/benchmarks/cost_model.py --check      beside measured steps

The graph is proved at symbolic sizes, so a model of 70 B is counted without a byte of it, and the walk of the plan by
name (`shaped.backends.placed`) says what is divided and what is sent. Blocks are alike: programs of one and of two are
counted, and each further one adds the difference.

    an operation    max(flops / chip.flops, bytes / chip.memory, chip.launch)
    bytes           eager: of its operands and results. fused: products and attention alone, and of what is computed
                    between two of them what goes in and what comes out
    a collective    bytes that pass a link / link.bytes + hops * link.latency, as a ring; a rank's parts of parameters
                    go in messages of at least 256 KB each, as far as there are as many, or an entry each
    a step          the sum of all of it, since nothing overlaps today; "overlapped" is the larger of computation and
                    communication, which no order of the same graph is below
"""

import argparse
import platform
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import sympy
import torch
import torch.nn.functional as F
from graph_costs import Counted, Operation, Size, count
from jaxtyping import Float, Int
from torch import Tensor

from shaped import ParamList, ScalarTrainer, init, ranks
from shaped.ranks.extents import extents


@dataclass(frozen=True)
class Chip:
    """What a rank computes with: flops and bytes a second that it reaches, bytes that it has, seconds to start one."""

    name: str
    flops: float
    memory: float
    capacity: float = 0.0
    launch: float = 0.0


@dataclass(frozen=True)
class Link:
    """What ranks send over: bytes a second in each direction of a rank, and seconds a hop."""

    bytes: float
    latency: float

    def ring(self, sent: float, count: int, passes: int) -> float:
        """Seconds of a ring of so many ranks that passes over `sent` bytes once (a gather, a scatter) or twice."""
        if count == 1:
            return 0.0
        return passes * (count - 1) * (sent / count / self.bytes + self.latency)


@dataclass(frozen=True)
class Links:
    """Between the ranks that share names, and what sums, gathers and scatters of the batch's ranks go over."""

    names: Link
    sums: Link
    gathers: Link
    scatters: Link


def symbols(trainer: ScalarTrainer) -> dict[str, Size]:
    """The expression of each dimension's name in a trainer's graph."""
    program = trainer._program
    places = [n for n in program.proof.graph.graph.nodes if n.op == "placeholder"]
    found: dict[str, Size] = {}
    for node, entry in zip(places, [*program.params.entries, *program.inputs], strict=False):
        for dim, expression in zip(entry.spec.dims, extents(node.meta["val"]), strict=True):
            if dim.is_name:
                found.setdefault(dim.text, expression)
    return found


def numbers(names: dict[str, Size], sizes: dict[str, int]) -> dict[Any, Any]:
    """The symbols of a graph for sizes of names; a name may be a number times its symbol."""
    found = {}
    for name, expression in names.items():
        times, symbol = expression.as_coeff_Mul()
        if symbol.is_Symbol and name in sizes:
            found[symbol] = sympy.Rational(sizes[name], times)
    return found


def seconds(operations: Iterable[Operation], chip: Chip, at: dict[Any, Any]) -> float:
    """How long operations take, each bound by flops or by memory."""
    total = 0.0
    for one in operations:
        flops, moved = (float(sympy.sympify(x).xreplace(at)) for x in (one.flops, one.bytes))
        total += max(flops / chip.flops, moved / chip.memory, chip.launch)
    return total


@dataclass(frozen=True)
class Layout:
    """How many ranks share the batch out, how many the names, and whether parameters lie in parts over the first."""

    dp: int
    tp: int
    zero: int


@dataclass(frozen=True)
class Predicted:
    """Of one step on one rank: seconds of computation, of the update, and of what is sent; and bytes."""

    computed: float
    updated: float
    by_name: float
    by_batch: float
    state: float
    saved: float
    gathered: float

    @property
    def today(self) -> float:
        """Seconds where nothing overlaps: the sum."""
        return self.computed + self.updated + self.by_name + self.by_batch

    @property
    def overlapped(self) -> float:
        """Seconds where gathers and sums over the batch's ranks are under computation: the larger of both."""
        return max(self.computed + self.by_name, self.by_batch) + self.updated


def predict(
    programs: tuple[Counted, Counted],
    layers: int,
    at: dict[Any, Any],
    layout: Layout,
    chip: Chip,
    links: Links,
    fused: bool = True,
) -> Predicted:
    """A step of a program of so many blocks.

    Args:
        programs: Of one block, and of two.
        layers: Blocks.
        at: Sizes of the symbols.
        layout: The ranks.
        chip: Of each rank.
        links: Between the ranks.
        fused: Whether what lies between two products is one operation.
    """  # fmt: skip

    def grown(of: Callable[[Counted], float]) -> float:
        first, second = map(of, programs)
        return first + (layers - 1) * (second - first)

    def value(size: Size) -> float:
        return float(sympy.sympify(size).xreplace(at))

    computed = grown(lambda c: seconds(c.fused if fused else c.eager, chip, at))
    by_name = grown(lambda c: sum(links.names.ring(value(s), layout.tp, 2) for s in c.sums))
    held = grown(lambda c: value(c.held))
    entries = held / layout.dp if layout.zero else held
    largest = max(value(one) for one in programs[0].layer)
    if layout.zero:  # two gathers and a scatter
        units = grown(lambda c: sum(min(1.0, 4 * value(one) / layout.dp / _LARGE) for one in c.layer))
        each = 4 * held / max(units, 1.0)
        by_batch = max(units, 1.0) * (
            2 * links.gathers.ring(each, layout.dp, 1) + links.scatters.ring(each, layout.dp, 1)
        )
    else:  # a sum, which is a scatter and a gather
        buckets = max(1.0, 4 * held / _BUCKET)
        by_batch = buckets * links.sums.ring(4 * held / buckets, layout.dp, 2)
    weighed = 4 * 4 * held / chip.memory if layout.dp > 1 else 0.0  # written for a message, and divided after it
    return Predicted(
        computed, 7 * 4 * entries / chip.memory + weighed, by_name, by_batch,
        16 * entries, grown(lambda c: value(c.saved)), 4 * 2 * largest if layout.zero else 0.0,
    )  # fmt: skip


class Block(ParamList):
    """Attention and two layers."""

    norm1: Float[Tensor, " dim"] = init.ones()
    q: Float[Tensor, "dim heads head"]
    k: Float[Tensor, "dim heads head"]
    v: Float[Tensor, "dim heads head"]
    out: Float[Tensor, "heads head dim"]
    norm2: Float[Tensor, " dim"] = init.ones()
    up: Float[Tensor, "dim hidden"]
    down: Float[Tensor, "hidden dim"]


class GPT(ParamList):
    """Blocks over a table of tokens, which gives the logits too."""

    tokens: Float[Tensor, "vocab dim"]
    blocks: list[Block]
    norm: Float[Tensor, " dim"] = init.ones()


def gpt(p: GPT, x: Int[Tensor, "batch seq"], y: Int[Tensor, "batch seq"]) -> Float[Tensor, ""]:
    """The mean over tokens."""
    h = p.tokens[x]
    for b in p.blocks:
        a = F.layer_norm(h, (h.shape[-1],), b.norm1)
        q, k, v = ((a @ w.flatten(1)).unflatten(-1, (w.shape[1], w.shape[2])).transpose(1, 2) for w in (b.q, b.k, b.v))
        h = h + F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2) @ b.out.flatten(0, 1)
        h = h + F.gelu(F.layer_norm(h, (h.shape[-1],), b.norm2) @ b.up) @ b.down
    return F.cross_entropy((F.layer_norm(h, (h.shape[-1],), p.norm) @ p.tokens.T).flatten(0, 1), y.flatten())


_LARGE, _BUCKET = 2**18, 25 * 2**20  # bytes of a message: `shaped.ranks.units`, and of gradients that are whole
CHIP = Chip("a chip of 4e14 flops/s reached in bfloat16, 3.3e12 bytes/s, 80 GB", 4e14, 3.3e12, 80e9)
INSIDE, OUTSIDE = Link(3e11, 5e-6), Link(4e10, 1e-5)  # within a node of 8, and between nodes
NAMES = ("heads", "hidden", "vocab")
SIZES = {  # layers, dim, heads, hidden
    "0.1 B": (12, 768, 12, 3072), "1.3 B": (24, 2048, 16, 8192), "7 B": (32, 4096, 32, 16384),
    "13 B": (40, 5120, 40, 20480), "30 B": (48, 7168, 56, 28672), "70 B": (80, 8192, 64, 36864),
}  # fmt: skip
ROWS = [
    ("0.1 B", Layout(8, 1, 0)), ("0.1 B", Layout(8, 1, 3)), ("1.3 B", Layout(8, 1, 0)), ("1.3 B", Layout(8, 1, 3)),
    ("7 B", Layout(64, 1, 3)), ("7 B", Layout(8, 8, 3)), ("13 B", Layout(128, 1, 3)), ("13 B", Layout(16, 8, 3)),
    ("30 B", Layout(512, 1, 3)), ("30 B", Layout(64, 8, 3)), ("70 B", Layout(1024, 1, 3)), ("70 B", Layout(128, 8, 3)),
    ("70 B", Layout(4096, 1, 3)), ("70 B", Layout(512, 8, 3)),
]  # fmt: skip


def proved(blocks: int) -> ScalarTrainer:
    """A GPT of a few numbers, of which the proof holds for all sizes; parameters in float32, products in bfloat16."""
    params = GPT.init(vocab=16, dim=16, heads=8, head=2, hidden=24, blocks=blocks, seed=0)
    return ScalarTrainer(gpt, params, autocast=torch.bfloat16, mesh="alone")


def table(seq: int = 4096, vocab: int = 50304) -> list[str]:
    """The table, as Markdown: one row of `seq` tokens a rank."""
    trainers = proved(1), proved(2)
    counted = {tp: tuple(count(t, NAMES, tp) for t in trainers) for tp in sorted({layout.tp for _, layout in ROWS})}
    lines = [
        f"A model, not a measurement: {CHIP.name}; {INSIDE.bytes:.0e} bytes/s between 8 ranks of a node, "
        f"{OUTSIDE.bytes:.0e} beyond; {seq} tokens a rank, float32 state, bfloat16 products. Seconds of a step.", "",
        "| model | ranks | dp x tp | `zero` | GB a rank: state | for backward | gathered | fits | computed "
        "| sums by name | over the batch's ranks | update | today (sum) | overlapped (max) |",
        "|---|---:|---|---:|" + "---:|" * 10,
    ]  # fmt: skip
    for name, layout in ROWS:
        layers, dim, heads, hidden = SIZES[name]
        sizes = {"vocab": vocab, "dim": dim, "heads": heads, "head": dim // heads, "hidden": hidden}
        at = numbers(symbols(trainers[0]), {**sizes, "batch": layout.tp, "seq": seq})
        both: Any = counted[layout.tp]
        far = INSIDE if layout.dp * layout.tp <= 8 else OUTSIDE
        found = predict(both, layers, at, layout, CHIP, Links(INSIDE, far, far, far))
        needs = [found.state, found.saved, found.gathered]
        times = [found.computed, found.by_name, found.by_batch, found.updated, found.today, found.overlapped]
        cells = [name, f"{layout.dp * layout.tp:,}", f"{layout.dp} x {layout.tp}", str(layout.zero)]
        cells += [f"{b / 1e9:.1f}" for b in needs] + ["yes" if sum(needs) < CHIP.capacity else "no"]
        lines.append(f"| {' | '.join([*cells, *(f'{t:.3f}' for t in times)])} |")
    return lines


def least(work: Callable[[], object], rounds: int = 7) -> float:
    """Seconds of the fastest of some calls."""
    times = []
    for _ in range(rounds):
        begun = time.perf_counter()
        work()
        times.append(time.perf_counter() - begun)
    return min(times)


def link(call: Callable[[Tensor], object], small: int, wide: int, whole: int, size: int, passes: int) -> Link:
    """A link as a collective of so many entries has it, of which `whole` are those of all ranks together."""
    quick, slow = (least(partial(call, torch.ones(n)), 15) for n in (small, wide))
    hops = passes * (size - 1)
    return Link(4 * whole / size / ((slow - quick) / hops), quick / hops)


def here(exchange: Any, rows: int, dim: int) -> tuple[Chip, Chip, Links]:
    """This machine as the model sees it, with all ranks at work: eager, compiled, and between the ranks."""
    a, b, large, other = torch.randn(rows, dim), torch.randn(dim, dim), torch.randn(2**22), torch.empty(2**22)
    flops = 2 * rows * dim * dim / least(lambda: a @ b, 100)
    memory = 8 * large.numel() / least(lambda: other.copy_(large), 20)
    one, size, whole = torch.ones(1), exchange.size, 2**20
    sums = link(exchange.total, 2, whole, whole, size, 2)
    gathers = link(exchange.gather, 2, whole // size, whole, size, 1)
    scatters = link(exchange.scatter, 2 * size, whole, whole, size, 1)
    compiled = Chip("this CPU", flops, memory)
    return replace(compiled, launch=least(lambda: torch.tanh(one), 100)), compiled, Links(sums, sums, gathers, scatters)


def check(layers: int, dim: int, rounds: int) -> None:
    """Print the model's time beside a measured one; both are of this run."""
    from ranks import Chain, loss, ours  # the other benchmark's model

    torch.set_num_threads(1)
    mesh = ranks.join()
    batch = torch.randn(32, dim), torch.randn(32, dim)
    programs: Any = tuple(count(ScalarTrainer(loss, Chain(n, dim), mesh="alone", static={"dim": dim})) for n in (1, 2))
    cases = [(backend, zero) for zero in (0, 3) for backend in ("eager", "compiled")]
    steps = [ours(lambda: Chain(layers, dim), batch, mesh, backend, zero)[0] for backend, zero in cases]
    exchange = ScalarTrainer(loss, Chain(1, dim), mesh=mesh, static={"dim": dim}).ranks
    times: list[list[float]] = [[] for _ in cases]
    for step in steps * 3:
        step()
    for _ in range(rounds):
        for at, step in enumerate(steps):
            times[at].append(least(step, 1))
    eager, compiled, links = here(exchange, 32, dim)
    ranks.say(f"torch {torch.__version__}, {platform.machine()}, {mesh.size()} ranks of gloo; {layers} layers of {dim}")
    ranks.say(f"measured here: {eager.flops:.2e} flops/s, {eager.memory:.2e} bytes/s of memory,")
    ranks.say(f"{eager.launch * 1e6:.1f} us an eager operation; bytes/s of a link, and us a hop:")
    for kind, one in (("sums", links.sums), ("gathers", links.gathers), ("scatters", links.scatters)):
        ranks.say(f"  {kind:<9} {one.bytes:.2e} {one.latency * 1e6:6.0f}")
    ranks.say("Milliseconds of a step: the least measured, and a model's")
    ranks.say(f"{'':<16} measured   model  model / measured   computed  update  sent")
    rows = {s: 32 for one in programs for op in one.eager for s in sympy.sympify(op.bytes).free_symbols}
    for (backend, zero), taken in zip(cases, times, strict=True):
        layout, fused = Layout(mesh.size(), 1, zero), backend == "compiled"
        found = predict(programs, layers, rows, layout, compiled if fused else eager, links, fused=fused)
        own, parts = min(taken), (found.computed, found.updated, found.by_batch)
        shown = "  ".join(f"{1000 * part:7.1f}" for part in parts)
        name, modelled = f"{backend} zero={zero}", f"{1000 * found.today:7.1f} {found.today / own:12.2f}"
        ranks.say(f"{name:<16} {1000 * own:8.1f} {modelled}   {shown}")
    ranks.leave()


def main() -> None:
    """Print the table, or the model beside measured steps."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--dim", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=9)
    args = parser.parse_args()
    if args.check:
        check(args.layers, args.dim, args.rounds)
    else:
        print("\n".join(table()))


if __name__ == "__main__":
    main()
