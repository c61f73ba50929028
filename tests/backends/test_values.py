"""Values that an operation cannot take are found within the compiled step, and nothing has changed."""

import pytest
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from shaped import ExecutorError, ParamList, ScalarTrainer
from shaped.backends.values import Checked
from tests.models import batch, mlp, mlp_loss

Index = Int[Tensor, " batch"]


class Table(ParamList):
    w: Float[Tensor, "5 3"]


def every_index(
    p: Table, row: Index, picked: Index, place: Index, copied: Index, filled: Index, at: Index, target: Index, by: Index
) -> Float[Tensor, ""]:
    sums = p.w.sum(1)
    read = F.embedding(row, p.w).sum() + p.w.index_select(0, picked).square().sum() + sums.gather(0, at).sum()
    added = sums.index_add(0, place, place.to(sums.dtype)).square().sum()
    written = sums.index_copy(0, copied, sums[filled]).square().sum() + sums.index_fill(0, filled, 2.0).sum()
    scores = p.w.T.reshape(1, 3, 5).expand(target.shape[0], 3, 5)
    return read + added + written + F.cross_entropy(scores[:, 0], target) + (sums[0] * (7 // by)).sum()


NAMES = ("row", "picked", "place", "copied", "filled", "at", "target", "by")
SAID = {
    "row": "embedding takes indices 0 to 4, and got",
    "picked": "index_select takes indices 0 to 4, and got",
    "place": "index_add takes indices 0 to 4, and got",
    "copied": "index_copy takes indices 0 to 4, and got",
    "filled": "index takes indices -5 to 4, and got",
    "at": "gather takes indices 0 to 4, and got",
    "target": "nll_loss takes indices 0 to 4, and got",
}


def test_a_value_that_an_operation_cannot_take_is_an_error_that_names_it_and_nothing_has_changed():
    trainer = ScalarTrainer(every_index, Table.init(seed=0), backend="compiled", assume=["batch >= 2"])
    good = dict(
        zip(NAMES, [torch.tensor([0, 1, 4])] * 6 + [torch.tensor([0, -100, 4]), torch.tensor([1, -2, 3])], strict=True)
    )
    trainer.step(*good.values(), lr=0.01)
    trainer.step(*(good | {"filled": torch.tensor([-1, -5, 0])}).values(), lr=0.01)  # as eager takes them
    before = trainer.params.w.detach().clone()
    bad = [(name, value) for name in SAID for value in (5, -6, -1) if (name, value) != ("filled", -1)]
    for name, value in bad:
        with pytest.raises(ExecutorError, match=f"at batch = 3: {SAID[name]} {value}. Nothing has changed"):
            trainer.step(*(good | {name: torch.tensor([0, value, 1])}).values(), lr=0.01)
    with pytest.raises(ExecutorError, match="floor_divide takes integer divisors other than 0, and got 0"):
        trainer.step(*(good | {"by": torch.tensor([1, 0, 1])}).values(), lr=0.01)

    assert trainer.steps == 2
    assert torch.equal(before, trainer.params.w)


def in_place(p: Table, added: Index, put: Index, scattered: Index) -> Float[Tensor, ""]:
    sums = torch.zeros_like(p.w[:, 0]).index_add_(0, added, p.w[0, 0].expand(added.shape[0]))
    sums[put] = p.w[1, 1]
    return sums.scatter_add_(0, scattered, p.w[2, 2].expand(scattered.shape[0])).square().sum()


def flat_places(p: Table, taken: Index, put: Index, bagged: Index) -> Float[Tensor, ""]:
    bags = F.embedding_bag(bagged.unsqueeze(1), p.w, mode="sum").sum()
    return p.w.take(taken).square().sum() + p.w.put(put, p.w[0, 0].expand(put.shape[0])).square().sum() + bags


@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize(
    ("loss", "names", "wrong"),
    [(in_place, ("index_add", "index_put", "scatter_add"), 5), (flat_places, ("take", "put", "embedding_bag"), 15)],
)
def test_an_index_in_place_or_into_all_elements_or_bags_is_looked_at_too(loss, names, wrong):
    trainer, good = ScalarTrainer(loss, Table.init(seed=0), backend="compiled"), torch.tensor([0, 4])
    for at, name in enumerate(names):
        bad = [good] * 3
        bad[at] = torch.tensor([1, wrong])
        with pytest.raises(ExecutorError, match=f"{name} takes indices .* and got {wrong}. Nothing has changed"):
            trainer.step(*bad, lr=0.1)
    trainer.step(good, good, good, lr=0.1)

    assert trainer.steps == 1


@pytest.mark.usefixtures("interpreted")
def test_a_class_that_is_not_there_is_an_error_in_every_pass_and_where_batches_are_left_out():
    trainer = ScalarTrainer(mlp_loss, mlp(), backend="compiled", nonfinite="skip", accumulate=2)
    x, y = batch(4)
    trainer.adamw_step(x, y, lr=0.1)
    before, counters = trainer.get_params(), trainer._shared.counters
    means = [mean.clone() for mean in counters.means]
    for call in (trainer.forward, trainer.backward, lambda *b: trainer.adamw_step(*b, lr=0.1)):
        with pytest.raises(ExecutorError, match="nll_loss takes indices"):
            call(x, y + 99)

    assert all(map(torch.equal, [*trainer.params, *counters.means], [*before, *means]))
    assert (trainer.steps, trainer.skipped, counters.waiting, float(counters.weight)) == (0, 0, 1, 4.0)


@pytest.mark.slow
def test_a_class_that_is_not_there_is_an_error_with_several_threads_too():
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        trainer = ScalarTrainer(mlp_loss, mlp(), backend="compiled")
        x, y = torch.randn(20000, trainer.params.w1.shape[0]), torch.zeros(20000, dtype=torch.int64)
        trainer.step(x, y, lr=0.1)
        y[15000] = 77
        with pytest.raises(ExecutorError, match="and got 77"):
            trainer.step(x, y, lr=0.1)
    finally:
        torch.set_num_threads(threads)


Numbers = Float[Tensor, "n 3"]


def asserted(p: Table, x: Numbers) -> Float[Tensor, ""]:
    torch._assert_async((x < 9).all(), "x is below 9")  # type: ignore[call-overload]
    return (x @ p.w.T).mean()


def likely(p: Table, x: Numbers) -> Float[Tensor, ""]:
    return F.binary_cross_entropy(torch.sigmoid(x @ p.w.T[:, :3]), x)


def drawn(p: Table, x: Numbers) -> Float[Tensor, ""]:
    return (torch.bernoulli(x) @ p.w.T).mean()


def normal(p: Table, x: Numbers) -> Float[Tensor, ""]:
    return (torch.normal(torch.zeros_like(x), x) @ p.w.T).mean()


def poisson(p: Table, x: Numbers) -> Float[Tensor, ""]:
    return (torch.poisson(x) @ p.w.T).mean()


def picked(p: Table, x: Numbers) -> Float[Tensor, ""]:
    return p.w[torch.multinomial(x, 2)].mean()


def classes(p: Table, x: Numbers) -> Float[Tensor, ""]:
    return (F.one_hot(x[:, 0].long(), p.w.shape[0]).float() @ p.w).square().mean()


class Wide(ParamList):
    w: Float[Tensor, "rows 3"]


def named_classes(p: Wide, x: Numbers) -> Float[Tensor, ""]:
    return (F.one_hot(x[:, 0].long(), p.w.shape[0]).float() @ p.w).square().mean()


def inverse(p: Table, x: Numbers) -> Float[Tensor, ""]:
    return (torch.linalg.inv(torch.diag_embed(x)) @ p.w.T).mean()


def factor(p: Table, x: Numbers) -> Float[Tensor, ""]:
    return (torch.linalg.cholesky(torch.diag_embed(x)) @ p.w.T).mean()


def margins(p: Table, x: Numbers) -> Float[Tensor, ""]:
    return F.multi_margin_loss(x @ p.w.T, x[:, 0].long()) + F.multilabel_margin_loss(x @ p.w.T[:, :3], x.long())


def poured(p: Table, x: Numbers) -> Float[Tensor, ""]:
    return (x.masked_scatter(x > 0.1, x[0, :2]) @ p.w.T).mean()


def repeated(p: Table, x: Numbers) -> Float[Tensor, ""]:
    return (x @ p.w.T).repeat_interleave(x[:, 0].long(), 0, output_size=x.shape[0]).mean()


REFUSED = [
    (likely, 0.5, 1.5, "binary_cross_entropy takes inputs and targets between 0 and 1, and got 1.5"),
    (likely, 0.5, -0.1, "binary_cross_entropy takes inputs and targets between 0 and 1"),
    (drawn, 0.5, 1.5, "bernoulli takes probabilities between 0 and 1, and got 1.5"),
    (drawn, 0.5, float("nan"), "bernoulli takes probabilities between 0 and 1, and got nan"),
    (normal, 0.5, -1.0, "normal takes standard deviations of at least 0, and got -1.0"),
    (poisson, 0.5, -1.0, "poisson takes rates of at least 0, and got -1.0"),
    (picked, 0.5, -1.0, "multinomial takes finite weights of at least 0, and got -1.0"),
    (picked, 0.5, 0.0, "multinomial takes as many weights above 0 as it draws, or replacement, and got 0"),
    (classes, 1.0, 5.0, "one_hot: Class values must be smaller than num_classes. Nothing"),
    (named_classes, 1.0, -100.0, "one_hot takes class numbers"),
    (inverse, 0.5, 0.0, "inv takes a matrix that is regular, with 0 as its info, and got"),
    (factor, 0.5, -1.0, "cholesky takes a matrix that is regular, with 0 as its info, and got"),
    (margins, 1.0, 5.0, "takes"),
    (margins, 1.0, -2.0, "takes"),
    (poured, 0.0, 1.0, "masked_scatter takes a mask with no more True than there are values, and got 3"),
    (repeated, 1.0, -1.0, "repeat_interleave takes repeats of at least 0, and got -1"),
    (repeated, 1.0, 5.0, "repeat_interleave takes repeats that add up to 2, and got 6"),
    (asserted, 0.5, 9.5, "x is below 9"),
]


@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize(("loss", "good", "bad", "said"), REFUSED, ids=lambda v: getattr(v, "__name__", str(v)[:12]))
def test_a_value_that_the_eager_kernel_refuses_is_refused_compiled_too(loss, good, bad, said):
    params = Wide.init(rows=5, seed=0) if loss is named_classes else Table.init(seed=0)
    trainer = ScalarTrainer(loss, params, backend="compiled")
    right, wrong = torch.full((2, 3), good), torch.full((2, 3), good)
    wrong[1] = bad
    trainer.step(right, lr=0.1)
    before = params.w.detach().clone()
    with pytest.raises((RuntimeError, IndexError)):
        trainer.with_backend("eager").step(wrong, lr=0.1)
    with pytest.raises(ExecutorError, match=said):
        trainer.step(wrong, lr=0.1)

    assert trainer.steps == 1
    assert torch.equal(before, params.w)


def halved(x: Tensor) -> Tensor:
    return (x * 2).view(-1) / 2


def overwritten(x: Tensor) -> Tensor:
    y = x * 2
    y.view(-1).add_(1)
    return y


@pytest.mark.parametrize("size", [(3, 4), (2, 3)])
def test_a_view_of_what_lies_otherwise_than_in_the_proof_is_a_copy(size):
    """T5 and Bloom: the decompositions of a lowering need not lay out a result as the kernels of the trace do."""
    graph, x = make_fx(halved)(torch.rand(size)), torch.rand(size[1], size[0]).T

    assert torch.equal(Checked(graph).run(x), x.reshape(-1))


def test_a_view_that_is_written_into_is_never_a_copy():
    graph = make_fx(overwritten)(torch.rand(3, 4))

    with pytest.raises(RuntimeError, match="view"):
        Checked(graph).run(torch.rand(4, 3).T)


def test_what_torch_asks_of_constants_alone_is_no_part_of_a_step(interpreted: None):
    def correlated(p: Table, x: Float[Tensor, "5 3"]) -> Float[Tensor, ""]:
        return torch.corrcoef(x + p.w).square().sum()

    x = torch.rand(5, 3, generator=torch.Generator().manual_seed(0))
    losses = [ScalarTrainer(correlated, Table.init(seed=0), backend=b).step(x, lr=0.1) for b in ("eager", "compiled")]

    torch.testing.assert_close(*losses)
