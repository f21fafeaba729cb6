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


def _check(tensor: torch.Tensor, bits: int) -> None:
    if tensor.dtype != torch.uint8 or tensor.dim() == 0:
        raise ValueError(f"codes are uint8 [..., n], not {tensor.dtype} {list(tensor.shape)}")
    if bits not in range(1, 9):
        raise ValueError(f"a code has 1 to 8 bits, not {bits}")


def _words(codes: torch.Tensor) -> torch.Tensor:
    """Eight bytes read as one int64; a view must start at a multiple of eight bytes of its storage."""
    flat = codes.contiguous().flatten()  # the stride of a dimension of length 1 may be anything
    words = (flat.clone() if flat.storage_offset() % 8 else flat).view(torch.int64)
    return words.view(*codes.shape[:-1], codes.shape[-1] // 8)


def pack(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """Pack codes below ``2**bits``.

    Args:
        codes: uint8 ``[..., n]``.
        bits: bits of one code, 1 to 8.

    Returns:
        uint8 ``[..., ceil(n * bits / 8)]``.

    Raises:
        ValueError: the codes are not uint8 ``[..., n]``, or one of them needs more bits.
    """
    _check(codes, bits)
    n = codes.shape[-1]
    if bits < 8 and codes.numel() and int(codes.max()) >= 1 << bits:
        raise ValueError(f"a code is {int(codes.max())}, but {bits} bits hold 0 to {(1 << bits) - 1}")
    if n % 8:
        codes = torch.nn.functional.pad(codes, (0, 8 - n % 8))
    word = _words(codes)  # [..., n / 8], one code a byte
    for step in (1, 2, 4):
        low = _mask(16 * step, step * bits)
        word = (word & low) | ((word >> (step * (8 - bits))) & (low << (step * bits)))
    packed = word.unsqueeze(-1).view(torch.uint8)[..., :bits]  # [..., n / 8, bits]
    return packed.flatten(-2)[..., : packed_width(n, bits)].contiguous()


def unpack(packed: torch.Tensor, bits: int, n: int) -> torch.Tensor:
    """The inverse of :func:`pack`: uint8 ``[..., ceil(n * bits / 8)]`` -> uint8 ``[..., n]``.

    Raises:
        ValueError: the bytes are not uint8, or not as many as ``n`` codes take.
    """
    _check(packed, bits)
    if packed.shape[-1] != packed_width(n, bits):
        raise ValueError(f"{n} codes of {bits} bits take {packed_width(n, bits)} bytes, not {packed.shape[-1]}")
    words = -(-n // 8)
    missing = words * bits - packed.shape[-1]
    if missing:
        packed = torch.nn.functional.pad(packed, (0, missing))
    padded = torch.nn.functional.pad(packed.unflatten(-1, (words, bits)), (0, 8 - bits))  # [..., words, 8]
    word = _words(padded).squeeze(-1)  # [..., words]
    for step in (4, 2, 1):
        low = _mask(16 * step, step * bits)
        word = (word & low) | ((word & (low << (step * bits))) << (step * (8 - bits)))
    return word.unsqueeze(-1).view(torch.uint8).flatten(-2)[..., :n]
