"""The four grids: nearest levels against brute force, what is stored, what is refused."""

import pytest
import torch

from r2q.quantization.grid import (
    GRIDS,
    AffineGrid,
    BinaryGrid,
    CodebookGrid,
    Grid,
    SymmetricGrid,
    stored,
    stored_shapes,
)


def make(kind: str, bits: int, rows: int = 3, groups: int = 5) -> Grid:
    g = torch.Generator().manual_seed(bits)
    scale = torch.rand(rows, groups, generator=g).half() + 0.1
    if kind == "affine":
        return AffineGrid(scale, torch.randint(2**bits, (rows, groups), dtype=torch.uint8, generator=g), bits)
    if kind == "affine-float":
        return AffineGrid(scale, (torch.rand(rows, groups, generator=g) * 2**bits).half(), bits)
    if kind == "symmetric":
        return SymmetricGrid(scale, bits)
    if kind == "binary":
        return BinaryGrid(torch.rand(rows, groups, bits, generator=g).half())
    return CodebookGrid(torch.randn(rows, groups, 2**bits, generator=g).half())


KINDS = ["affine", "affine-float", "symmetric", "binary", "codebook"]


@pytest.mark.parametrize("bits", [1, 2, 3, 4])
@pytest.mark.parametrize("kind", KINDS)
def test_encode_finds_the_nearest_level(kind: str, bits: int) -> None:
    grid = make(kind, bits)
    values = torch.randn(3, 5, 50, generator=torch.Generator().manual_seed(7)) * 2
    distance = (values.unsqueeze(-1) - grid.levels().unsqueeze(-2)).abs()  # [rows, groups, n, 2**bits]
    mine = (grid.decode(grid.encode(values)) - values).abs()
    torch.testing.assert_close(mine, distance.amin(-1), rtol=0, atol=1e-5)


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("kind", KINDS)
def test_stored_tensors_give_the_same_grid(kind: str, bits: int) -> None:
    grid = make(kind, bits)
    tensors = grid.tensors()
    again = GRIDS[grid.kind].from_tensors(tensors, bits, grid.shape)
    assert torch.equal(again.levels(), grid.levels())
    expected = stored_shapes(grid.kind, bits, grid.shape, kind == "affine-float")
    assert {name: (tensor.shape, tensor.dtype) for name, tensor in tensors.items()} == expected


@pytest.mark.parametrize("kind", KINDS)
def test_side_bits_are_what_is_stored(kind: str) -> None:
    grid = make(kind, 2, rows=8, groups=16)
    nbytes = sum(t.numel() * t.element_size() for t in grid.tensors().values())
    assert nbytes * 8 == grid.side_bits * 8 * 16


def test_affine_levels_by_hand() -> None:
    grid = AffineGrid(torch.tensor([[0.5]]).half(), torch.tensor([[1]], dtype=torch.uint8), 2)
    assert grid.levels().tolist() == [[[-0.5, 0.0, 0.5, 1.0]]]


def test_symmetric_levels_by_hand() -> None:
    grid = SymmetricGrid(torch.tensor([[0.5]]).half(), 2)
    assert grid.levels().tolist() == [[[-0.75, -0.25, 0.25, 0.75]]]
    assert SymmetricGrid(torch.zeros(1, 1).half(), 2).encode(torch.tensor([[[0.0, -1.0]]])).tolist() == [[[2, 0]]]


def test_binary_levels_by_hand() -> None:
    grid = BinaryGrid(torch.tensor([[[2.0, 0.5]]]).half())
    assert grid.levels().tolist() == [[[-2.5, 1.5, -1.5, 2.5]]]  # codes 0 (--), 1 (+-), 2 (-+), 3 (++)


def test_ties_go_up() -> None:
    grid = BinaryGrid(torch.tensor([[[2.0, 1.0]]]).half())  # levels -3, -1, 1, 3: ties at -2, 0, 2
    assert grid.decode(grid.encode(torch.tensor([[[-2.0, 0.0, -0.0, 2.0]]]))).tolist() == [[[-1.0, 1.0, 1.0, 3.0]]]


@pytest.mark.parametrize("kind", KINDS)
def test_cat_stacks_rows(kind: str) -> None:
    grid = make(kind, 2)
    assert torch.equal(type(grid).cat([grid, grid]).levels(), grid.levels().repeat(2, 1, 1))


@pytest.mark.parametrize(("value", "message"), [(float("nan"), "not finite"), (1e6, "exceed 65504")])
def test_scales_that_cannot_be_stored_are_refused(value: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        stored(torch.tensor([1.0, value]))
