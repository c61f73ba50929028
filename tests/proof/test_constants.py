"""What a program makes from plain numbers it may read; what data has touched stays data."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from jaxtyping import Float
from torch import Tensor

from shaped import ParamList, ScalarTrainer, Unprovable, prove


def over_counted_axes(x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c"]:
    return x.sum(torch.arange(2, x.dim()).tolist())


def over_marked_axes(x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c"]:
    return x.sum(torch.tensor([False, False, True, True]).nonzero().flatten().tolist())


def over_an_axis(x: Float[Tensor, "n c"]) -> Float[Tensor, " n"]:
    return x.sum(int(torch.full((), 3).sub_(2)))


def chosen(x: Float[Tensor, "n c"]) -> Float[Tensor, "n c"]:
    weights = torch.zeros(3)
    weights[1] = 1
    return x * weights.sum().item() if weights.add(1)[1] > 1 else x[:, :1]


@pytest.mark.parametrize("function", [over_counted_axes, over_marked_axes, over_an_axis, chosen])
def test_a_value_made_from_plain_numbers_may_be_read(function: Callable[..., Any]) -> None:
    assert prove(function).conditions == ()


def through_an_index(t: Tensor, x: Tensor) -> None:
    t[0] = x.sum()


def through_a_view(t: Tensor, x: Tensor) -> None:
    t.view(-1)[:1].copy_(x.sum())


def through_data(t: Tensor, x: Tensor) -> None:
    t.data[0] = x.sum()


def into_a_list(t: Tensor, x: Tensor) -> None:
    torch._foreach_add_(list(t.unbind()), [x.sum()] * len(t))


def into_a_result(t: Tensor, x: Tensor) -> None:
    torch.add(x.sum(), 1, out=t[0])


def by_drawing(t: Tensor, x: Tensor) -> None:
    t.uniform_()


WRITES = [through_an_index, through_a_view, through_data, into_a_list, into_a_result, by_drawing]


@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize("make", [lambda: torch.tensor([0.0]), lambda: torch.zeros(2)], ids=["one", "two"])
def test_a_value_that_data_was_written_into_is_data(
    write: Callable[[Tensor, Tensor], None], make: Callable[[], Tensor]
) -> None:
    def far(x: Float[Tensor, "n c"]) -> Float[Tensor, "n c"]:
        t = make()
        write(t, x)
        return x[:, :1] if t[0] > 1e6 else x  # no run on small random numbers goes there

    with pytest.raises(Unprovable, match="depends on data"):
        prove(far)


class Scale(ParamList):
    w: Float[Tensor, " c"]


def dice(p: Scale, x: Float[Tensor, "n c h w"], y: Float[Tensor, "n c h w"]) -> Float[Tensor, ""]:
    guess = (x * p.w.view(1, -1, 1, 1)).sigmoid()
    axes = torch.arange(2, 4).tolist()
    return 1 - (2 * (guess * y).sum(axes) / (guess + y).sum(axes)).mean()


@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize("backend", ["eager", "compiled"])
def test_a_loss_over_counted_axes_trains_as_in_torch(backend: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, 3, 4, 5, generator=generator), torch.rand(2, 3, 4, 5, generator=generator)
    w = torch.ones(3, requires_grad=True)
    expected = dice(Scale(w=w), x, y)
    trainer = ScalarTrainer(dice, Scale(w=torch.ones(3)), backend=backend)

    torch.testing.assert_close(torch.as_tensor(trainer.step(x, y, lr=0.1)), expected.detach())
