"""Newton-Schulz: orthogonal factors of batches of matrices."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from shaped_kernels.polar import MUON, orthogonal, orthogonal_list

CONVERGENT = (15 / 8, -10 / 8, 3 / 8)
SHAPES = [(1, 5, 5), (3, 4, 9), (3, 9, 4), (2, 7, 1), (1, 1, 6)]


def polar(matrices: Tensor) -> Tensor:
    u, _, v = torch.linalg.svd(matrices.double(), full_matrices=False)
    return u @ v


@pytest.mark.parametrize("shape", SHAPES)
def test_it_converges_to_the_polar_factor(shape: tuple[int, ...]) -> None:
    matrices = torch.randn(shape, dtype=torch.float64)

    torch.testing.assert_close(orthogonal(matrices, CONVERGENT, 60), polar(matrices), rtol=0, atol=1e-9)


@pytest.mark.parametrize("shape", SHAPES)
def test_each_step_is_an_odd_polynomial_of_the_singular_values(shape: tuple[int, ...]) -> None:
    matrices = torch.randn(shape, dtype=torch.float64)
    u, s, v = torch.linalg.svd(matrices, full_matrices=False)
    s = s / s.norm(dim=-1, keepdim=True)
    a, b, c = MUON
    for _ in range(5):
        s = a * s + b * s**3 + c * s**5

    torch.testing.assert_close(orthogonal(matrices), (u * s[..., None, :]) @ v)


@given(st.lists(st.sampled_from([(1, 3), (3, 1), (4, 3), (3, 4), (3, 9), (9, 3)]), min_size=1, max_size=6))
def test_many_shapes_together_are_each_as_alone(shapes: list[tuple[int, int]]) -> None:
    batches = [torch.randn(1 + i % 2, *shape, dtype=torch.float64) for i, shape in enumerate(shapes)]

    for one, together in zip(batches, orthogonal_list(batches, [1.0] * len(batches)), strict=True):
        torch.testing.assert_close(together, orthogonal(one))


def test_a_zero_matrix_stays_zero() -> None:
    assert torch.equal(orthogonal(torch.zeros(2, 3, 4)), torch.zeros(2, 3, 4))
