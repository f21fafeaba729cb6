"""The symmetric rules against literal transcriptions of their formulas, and what they store."""

import pytest
import torch

from baselines.llm_qat import LLMQAT
from r2q.quantization.grid import stored
from r2q.quantization.method import Recipe


def quantized(weight: torch.Tensor, granularity: str = "channel", bits: int = 2, **options: str) -> torch.Tensor:
    return LLMQAT(Recipe("x", "llm_qat", granularity, bits, options=dict(options))).quantize_weight(weight).dequantize()


def published(w: torch.Tensor, scaling_factor: torch.Tensor) -> torch.Tensor:
    """LLM-QAT's two-bit branch, term by term."""
    num_bits, clip_val = 2 ** (2 - 1), 1 - 1e-2
    clamped = torch.clamp(w / scaling_factor, -clip_val, clip_val)
    return scaling_factor * (torch.round(clamped * num_bits - 0.5) + 0.5) / num_bits


@pytest.mark.parametrize("granularity", ["channel", "g32"])
@pytest.mark.parametrize("scale", ["mean", "max"])
def test_two_bits_are_the_published_formula(granularity: str, scale: str) -> None:
    w = torch.randn(32, 128, generator=torch.Generator().manual_seed(1)) * 0.05
    groups = w.reshape(32, -1, 32 if granularity == "g32" else 128)
    s = 2 * groups.abs().mean(-1, keepdim=True) if scale == "mean" else groups.abs().amax(-1, keepdim=True)
    expected = published(groups, 2 * stored(s / 2).float()).reshape_as(w)
    torch.testing.assert_close(quantized(w, granularity, scale=scale), expected, rtol=1e-6, atol=0)


def test_boundaries_fall_as_published() -> None:
    w = torch.tensor([[0.0, -0.0, 1.0, -1.0, 0.5, 1.5, -1.5, -2.5, 2.5, 0.25, -0.25, 1.0]])  # mean |w| is 1: s is 2
    assert w.abs().sum() == w.numel()
    assert torch.equal(quantized(w), published(w, torch.tensor(2.0)))
    assert quantized(w)[0, :4].tolist() == [0.5, 0.5, 0.5, -1.5]


@pytest.mark.parametrize("bits", [3, 4])
def test_more_bits_are_symmetric_min_max(bits: int) -> None:
    w = torch.randn(16, 64, generator=torch.Generator().manual_seed(2))
    step = stored(w.abs().amax(1, keepdim=True) / (2 ** (bits - 1) - 1)).float()
    torch.testing.assert_close(quantized(w, bits=bits), torch.round(w / step) * step)


def test_two_bits_store_one_scale_a_group() -> None:
    weight = LLMQAT(Recipe("x", "llm_qat", "g64")).quantize_weight(torch.randn(8, 128))
    assert weight.formula_bits() / (8 * 128) == 2 + 16 / 64
    assert weight.nbytes * 8 == weight.formula_bits()


def test_the_start_of_seq_is_for_two_bits() -> None:
    with pytest.raises(ValueError, match=r"layer weight: scale: max is SEQ's start at 2 bits, not 3"):
        quantized(torch.randn(4, 8), bits=3, scale="max")
