"""Losses at random: Python source with its parameters or module, and batches for it."""

import random
from dataclasses import dataclass

from shaped.backends.options import Sizes
from tests.fuzz import layers, places  # noqa: F401  they enter their operations in the tables
from tests.fuzz.drafts import OPERATIONS, Dim, Draft, Value, forms
from tests.fuzz.operations import linear  # and so does its module

# Of four scores x: classes y with weights w of classes, or four numbers y.
BY_CLASS = forms("""
F.cross_entropy({x}, {y}) | F.cross_entropy({x}, {y}, label_smoothing=0.1) | F.cross_entropy({x}, {y}, weight={w}) |
F.nll_loss({x}.log_softmax(1), {y}, ignore_index=0, reduction='sum') * 0.1 | F.cross_entropy({x}, {y}, ignore_index=1) |
F.multi_margin_loss({x}, {y}) | F.multi_margin_loss({x}, {y}, p=2, margin=0.5, weight={w}) |
-{x}.log_softmax(1).gather(1, {y}.unsqueeze(1)).mean() | F.hinge_embedding_loss({x}[:, 0], ({y} % 2) * 2 - 1) |
(F.cross_entropy({x}, {y}, reduction='none') * ({y} > 0)).sum() / ({y} > 0).sum().clamp(min=1) |
F.multilabel_margin_loss({x}, torch.stack([{y}, ({y} + 1) % 4, torch.full_like({y}, -1), {y}], 1)) |
-(F.one_hot({y}, 4) * {x}.log_softmax(1) * (1 - {x}.softmax(1)).square()).sum(1).mean() |
F.cross_entropy({x}.unsqueeze(2).expand(-1, -1, 3), {y}.unsqueeze(1).expand(-1, 3), weight={w}, label_smoothing=0.2)
""")
BY_NUMBERS = forms("""
F.mse_loss({x}, {y}) | F.smooth_l1_loss({x}, {y}) | F.huber_loss({x}, {y}, delta=0.7) |
F.cross_entropy({x}, {y}.softmax(1)) |
F.binary_cross_entropy_with_logits({x}, {y}.sigmoid()) | F.l1_loss({x} + 3, {y}) + {x}.var() |
({x} * {y}).logsumexp((0, 1)) |
F.kl_div({x}.log_softmax(1), {y}.softmax(1), reduction='batchmean') | F.soft_margin_loss({x}, {y}.sign()) |
F.gaussian_nll_loss({x}, {y}, F.softplus({x}.flip(1)) + 0.1) | F.triplet_margin_loss({x}, {y}, {y}.flip(1) + 1) |
F.cosine_embedding_loss({x}, {y}, {y}.detach()[:, 0].sign() + ({y}[:, 0] == 0)) |
F.binary_cross_entropy({x}.sigmoid(), {y}.sigmoid()) | F.multilabel_soft_margin_loss({x}, ({y} > 0).to({x}.dtype)) |
F.binary_cross_entropy_with_logits({x}, ({y} > 0).to({x}.dtype), weight={w}, pos_weight={w} + 1) |
F.cross_entropy({x}, {y}.softmax(1), weight={w}, label_smoothing=0.1) |
F.poisson_nll_loss({x}, {y}.abs() * 2, full=True) |
F.margin_ranking_loss({x}[:, 0], {x}[:, 1], {y}[:, 0].sign(), margin=0.3) |
{x}.sub({y}).square().mean(0).prod().tanh() |
F.kl_div({x}.log_softmax(1), {y}.log_softmax(1), reduction='sum', log_target=True) * 0.1 |
F.triplet_margin_with_distance_loss({x}, {y}, {y}.flip(1) + 1, swap=True) |
F.poisson_nll_loss({x}.exp(), {y}.abs(), False) |
(F.mse_loss({x}, {y}, reduction='none') * ({y} > 0)).sum() / ({y} > 0).sum().clamp(min=1) |
torch.maximum(0.9 * ({y} - {x}), -0.1 * ({y} - {x})).mean() | ({x} - {y}).cosh().log().sum(1).mean() |
F.cross_entropy(F.normalize({x}) @ F.normalize({y}).T / 0.5, torch.arange({x}.shape[0]))
""")
DTYPES = ("float32", "float32", "float32", "float64", "float64", "bfloat16")
HEAD = """\
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from shaped import ParamList
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
"""


@dataclass(frozen=True)
class Loss:
    """A file with a function `loss` over a class `Net`, a ParamList or a module."""

    number: str  # seed:index
    source: str
    dtype: str
    inputs: tuple[tuple[str, tuple[Dim, ...], int], ...]  # kind, dims, number of classes
    sizes: tuple[dict[str, int], ...]  # of the batches, one a step
    mode: Sizes  # `sizes` of the trainer
    draws: bool
    kinds: tuple[str, ...]


def make(seed: int, index: int) -> Loss:
    """The loss of this number; the same at every call."""
    rng = random.Random(f"{seed}:{index}")
    draft = Draft(rng, rng.choice(["p", "self"]))
    value = _started(draft)
    for _ in range(rng.randint(3, 7)):
        rank = len(value.dims)
        kinds = list(OPERATIONS[rank])
        kind = rng.choices(kinds, [3 if kind == "pointwise" else 1 for kind in kinds])[0]
        made = OPERATIONS[rank][kind](draft, value)
        if made is not None:
            value = made
            draft.kinds.append(kind)
    while len(value.dims) > 2:  # the loss is of rows
        name = "flattened" if len(value.dims) == 4 else "pooled"
        value = OPERATIONS[len(value.dims)][name](draft, value) or value
    result = _ended(draft, value)
    n, t = rng.choice([2, 3, 4, 5, 8, 16]), rng.choice([2, 3, 5, 8])
    other = {"n": n + rng.choice([-1, 1, 3]), "t": t}
    first = {"n": n, "t": t}
    sizes = (first, other, first) if other["n"] > 1 else (first,) * 3
    inputs = tuple(draft.inputs.values())
    modes: list[Sizes] = ["auto", "auto", "dynamic", "static"]
    mode = rng.choice(modes)
    dtype = rng.choice(DTYPES)
    if mode == "static":
        sizes = (first,) * 3
    return Loss(f"{seed}:{index}", _written(draft, result), dtype, inputs, sizes, mode, draft.draws, tuple(draft.kinds))


def _started(d: Draft) -> Value:
    features = d.rng.choice([3, 4, 6, 8, 12])
    if d.rng.random() < 0.35:
        dims: tuple[Dim, ...] = ("n", d.rng.choice([1, 2, 3]), d.rng.choice([5, 6, 7]), d.rng.choice([4, 5, 6]))
        x = Value(d.input(dims), dims)
        return OPERATIONS[4]["convolved"](d, x) or x
    dims = ("n", features) if d.rng.random() < 0.5 else ("n", "t", features)
    return linear(d, Value(d.input(dims), dims))


def _ended(d: Draft, x: Value) -> str:
    """The expression of the loss: of rows, with a target of their own."""
    x = d.let(f"F.linear({x.name}, {d.param(4, x.last)}, {d.param(4)})", ("n", 4))
    classes = d.rng.random() < 0.4
    y = d.input(("n",), "Int", 4) if classes else d.input(("n", 4))
    return d.rng.choice(BY_CLASS if classes else BY_NUMBERS).format(
        x=x.name, y=y, w=f"torch.tensor([1.0, 2.0, 0.5, 1.0], dtype={x.name}.dtype)"
    )


def _written(d: Draft, result: str) -> str:
    arguments = ", ".join(f"{name}: {kind}{_annotated(dims)}" for name, (kind, dims, _) in d.inputs.items())
    constants = "".join(f"{name} = {text}\n" for name, text in d.outside.items())
    body = "\n".join([*d.lines, f"return {result}"])
    if not d.in_module:
        fields = "\n".join(f"    {name}: Float{_annotated(dims)}" for name, dims in d.params.items())
        start = f"    {'return'} Net(*[torch.randn(s) for s in {list(d.params.values())}])"
        text = f"class Net(ParamList):\n{fields}\n\n\ndef start():\n{start}\n\n\n"
        text += f'def loss(p: Net, {arguments}) -> Float[Tensor, ""]:\n{_indented(body, 4)}\n'
    else:
        made = [f"self.{name} = nn.Parameter(torch.randn({list(dims)}))" for name, dims in d.params.items()]
        made += [f"self.{name} = {text}" for name, text in d.modules.items()]
        text = "class Net(nn.Module):\n    def __init__(self):\n        super().__init__()\n"
        text += _indented("\n".join(made), 8) + f"\n\n    def forward(self, {', '.join(d.inputs)}):\n"
        text += _indented(body, 8) + "\n\n\ndef start():\n    return Net()\n\n\n"
        text += f'def loss(net: Net, {arguments}) -> Float[Tensor, ""]:\n    return net({", ".join(d.inputs)})\n'
    return f"{HEAD}\n{constants}\n\n{text}"


def _annotated(dims: tuple[Dim, ...] | tuple[int, ...]) -> str:
    text = " ".join(map(str, dims))
    return f'[Tensor, "{text if len(dims) != 1 else " " + text}"]'


def _indented(text: str, by: int) -> str:
    return "\n".join(" " * by + line for line in text.splitlines())
