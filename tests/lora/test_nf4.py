"""Four bits: the codes, their error, and torchao's."""

import pytest
import torch

from shaped.lora import dequantise_nf4, quantise_nf4


def test_four_bits_are_off_by_half_the_widest_gap_at_most() -> None:
    w = torch.randn(8, 128, generator=torch.Generator().manual_seed(0))
    codes, scales = quantise_nf4(w)
    error = (dequantise_nf4(codes, scales) - w).view(8, 2, 64).abs()

    assert codes.shape == (8, 2, 32)
    assert (error <= 0.15191 * scales.unsqueeze(-1)).all()
    assert torch.equal(dequantise_nf4(*quantise_nf4(dequantise_nf4(codes, scales))), dequantise_nf4(codes, scales))
    assert not dequantise_nf4(*quantise_nf4(torch.zeros(1, 64))).any()
    with pytest.raises(ValueError, match="columns are a multiple of block = 64"):
        quantise_nf4(torch.zeros(2, 65))


@pytest.mark.filterwarnings("ignore")
def test_four_bits_are_those_of_torchao() -> None:
    from torchao import quantization

    w = torch.randn(64, 512, generator=torch.Generator().manual_seed(0))
    theirs = quantization.to_nf4(w)
    codes, scales = quantise_nf4(w, scale_block=256)

    assert torch.equal(codes.flatten(), theirs.quantized_data)
    assert torch.equal(dequantise_nf4(codes, scales), theirs.get_original_weight())
