"""Codes of 1 to 8 bits, stored as one little-endian bit string per row.

Code ``i`` of a row occupies bits ``[i * bits, (i + 1) * bits)`` of the row's bit string; bit ``j`` of the string is
bit ``j % 8`` of byte ``j // 8``. For two bits that is the usual ``c0 | c1 << 2 | c2 << 4 | c3 << 6``. A row takes
``ceil(n * bits / 8)`` bytes: exactly ``bits`` per code whenever ``n * bits`` is a multiple of eight.

Eight codes are handled at once as the eight bytes of one 64-bit word: three shift-and-or steps bring neighbouring
fields together (bytes to pairs, pairs to fours, fours to the whole word).
"""

import torch


def _mask(field_bits: int, used_bits: int) -> int:
    """A 64-bit mask with the low ``used_bits`` of every ``field_bits``-wide field set."""
    return sum(((1 << used_bits) - 1) << start for start in range(0, 64, field_bits))


def packed_width(n: int, bits: int) -> int:
    """Bytes that ``n`` codes of ``bits`` bits take."""
    return -(-n * bits // 8)


def pack(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """Pack codes below ``2**bits``.

    Args:
        codes: uint8 ``[..., n]``.
        bits: bits of one code, 1 to 8.

    Returns:
        uint8 ``[..., ceil(n * bits / 8)]``.
    """
    n = codes.shape[-1]
    if n % 8:
        codes = torch.nn.functional.pad(codes, (0, 8 - n % 8))
    word = codes.contiguous().view(torch.int64)  # [..., n / 8], one code a byte
    for step in (1, 2, 4):
        low = _mask(16 * step, step * bits)
        word = (word & low) | ((word >> (step * (8 - bits))) & (low << (step * bits)))
    packed = word.unsqueeze(-1).view(torch.uint8)[..., :bits]  # [..., n / 8, bits]
    return packed.flatten(-2)[..., : packed_width(n, bits)].contiguous()


def unpack(packed: torch.Tensor, bits: int, n: int) -> torch.Tensor:
    """The inverse of :func:`pack`: uint8 ``[..., ceil(n * bits / 8)]`` -> uint8 ``[..., n]``."""
    words = -(-n // 8)
    missing = words * bits - packed.shape[-1]
    if missing:
        packed = torch.nn.functional.pad(packed, (0, missing))
    padded = torch.nn.functional.pad(packed.unflatten(-1, (words, bits)), (0, 8 - bits))  # [..., words, 8]
    word = padded.contiguous().view(torch.int64).squeeze(-1)  # [..., words]
    for step in (4, 2, 1):
        low = _mask(16 * step, step * bits)
        word = (word & low) | ((word & (low << (step * bits))) << (step * (8 - bits)))
    return word.unsqueeze(-1).view(torch.uint8).flatten(-2)[..., :n]
