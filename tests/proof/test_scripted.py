"""Functions of TorchScript: those that read sizes are told, and the others are proved.

In torch 2.11 and 2.14 its interpreter reads the sizes of whatever it is given, so that none is; in 2.13 it does not.
"""

import pytest
import torch
from jaxtyping import Float
from torch import Tensor

from shaped import Unprovable, prove


@torch.jit.script
def doubled(x: Tensor) -> Tensor:
    return x * 2


@torch.jit.script
def where_large(x: Tensor) -> Tensor:
    if x.size(0) > 3:
        return x * 2
    return x


READS_ALL = not torch.__version__.startswith("2.13.")


@pytest.mark.skipif(READS_ALL, reason="its interpreter reads all sizes")
def test_what_reads_no_size_is_proved() -> None:
    def function(x: Float[Tensor, "n m"]) -> Float[Tensor, "n m"]:
        return doubled(x)

    assert prove(function).conditions == ()


def test_what_reads_sizes_is_told_with_its_line() -> None:
    def function(x: Float[Tensor, "n m"]) -> Float[Tensor, "n m"]:
        return where_large(x)

    said = "return where_large(.|\n)*TorchScript interpreter" if READS_ALL else "TorchScript here that reads sizes"
    with pytest.raises(Unprovable, match=said):
        prove(function)
