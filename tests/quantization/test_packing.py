"""Packed codes: exactly ``bits`` per code, and back without loss, for every width and shape."""

import pytest
import torch

from r2q.quantization.packing import pack, packed_width, unpack


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("shape", [(1,), (7,), (8,), (3, 5), (2, 3, 40), (5, 64), (1, 129)], ids=str)
def test_round_trip(bits: int, shape: tuple[int, ...]) -> None:
    codes = torch.randint(2**bits, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(bits))
    packed = pack(codes, bits)
    assert packed.shape == (*shape[:-1], packed_width(shape[-1], bits))
    assert torch.equal(unpack(packed, bits, shape[-1]), codes)


@pytest.mark.parametrize("bits", range(1, 9))
def test_layout_is_a_little_endian_bit_string(bits: int) -> None:
    """Against a bit string put together by hand with Python integers."""
    codes = torch.randint(2**bits, (13,), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    number = sum(int(code) << (bits * i) for i, code in enumerate(codes))
    assert bytes(pack(codes, bits).tolist()) == number.to_bytes(packed_width(13, bits), "little")


@pytest.mark.parametrize("bits", range(1, 9))
def test_any_slice_and_empty_shape_comes_back(bits: int) -> None:
    codes = torch.randint(2**bits, (8, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(bits))
    views = [codes.flatten()[4:20], codes[1:, 3:], codes[:, ::3], codes.T, codes[:0], codes[:, :0], codes[2, 1:2]]
    views += [codes[0, :0:2], codes[:, :0:2], codes.as_strided((1, 8), (5, 1)), codes.as_strided((1, 1, 16), (3, 7, 1))]
    for view in views:
        assert torch.equal(unpack(pack(view, bits), bits, view.shape[-1]), view)
    stored = torch.cat([torch.zeros(3, dtype=torch.uint8), pack(codes.flatten(), bits)])
    assert torch.equal(unpack(stored[3:], bits, 512), codes.flatten())


@pytest.mark.parametrize(
    "codes",
    [torch.tensor([5], dtype=torch.uint8), torch.tensor([-1]), torch.tensor([1.0]), torch.tensor([True])],
    ids=lambda codes: str(codes.tolist()),
)
def test_what_does_not_fit_is_refused(codes: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"2 bits hold 0 to 3|codes are uint8"):
        pack(codes, 2)
