"""Kernels of packed weights and their twins against float64, on ragged shapes, in Triton's interpreter on a CPU."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from r2q.kernels.linear import linear
from r2q.kernels.matmul import matmul_plain
from r2q.kernels.matvec import matvec, matvec_plain
from r2q.kernels.planes import Planes, decode_plain, planes, supports
from r2q.kernels.quantize_pack import finished, quantize_pack, quantize_plain
from r2q.quantization.grid import AffineGrid, BinaryGrid, Grid, SymmetricGrid
from r2q.quantization.packing import pack
from r2q.quantization.residual import residual_codes
from tests.models.tiny import needs_gpu

GRIDS = ("binary", "affine", "float zero", "symmetric", "tensor")
SHAPES = [(7, 192, 32), (5, 576, 64), (3, 576, 576), (6, 256, 128), (5, 48, 16)]  # out, in, group
TOLERANCE = {torch.float16: 2e-3, torch.bfloat16: 1e-2, torch.float32: 5e-4}  # of the norm; the interpreter truncates


def example(kind: str, out: int, width: int, group: int) -> tuple[Planes, torch.Tensor]:
    """A random weight, and what its grid decodes it to (float64)."""
    draw = torch.Generator().manual_seed(out * width + group)
    rows, groups = (1, 1) if kind == "tensor" else (out, width // group)
    scale = torch.rand(rows, groups, generator=draw).half() + 0.1
    codes = torch.randint(4, (out, width), dtype=torch.uint8, generator=draw)
    grid: Grid
    if kind in ("binary", "tensor"):
        grid = BinaryGrid(torch.randn(rows, groups, 2, generator=draw).half())
    elif kind == "affine":
        grid = AffineGrid(scale, torch.randint(4, (rows, groups), dtype=torch.uint8, generator=draw), 2)
    elif kind == "float zero":
        grid = AffineGrid(scale, 3 * torch.rand(rows, groups, generator=draw).half(), 2)
    else:
        grid = SymmetricGrid(scale, 2)
    exact = grid.decode(codes.view(*grid.shape, -1)).view(out, width).double()
    return planes(pack(codes, 2), grid), exact


def vectors(batch: int, width: int, dtype: torch.dtype) -> torch.Tensor:
    """Inputs of very different sizes, some zero."""
    x = torch.randn(batch, width, generator=torch.Generator().manual_seed(width))
    x[:, 5] *= 30
    x[0, : width // 3] = 0
    return x.to(dtype)


def distance(found: torch.Tensor, wanted: torch.Tensor) -> float:
    assert found.isfinite().all()
    return float((found.double() - wanted).norm() / wanted.norm())


@pytest.mark.parametrize("kind", GRIDS)
@pytest.mark.parametrize(("out", "width", "group"), SHAPES)
def test_the_twins_are_the_grid(kind: str, out: int, width: int, group: int) -> None:
    weight, exact = example(kind, out, width, group)
    assert torch.allclose(decode_plain(weight, torch.float64), exact, atol=1e-5)
    for dtype, tolerance in TOLERANCE.items():
        x = vectors(3, width, dtype)
        wanted = x.double() @ exact.T
        assert distance(matvec_plain(weight, x), wanted) < tolerance
        assert distance(matmul_plain(weight, x), wanted) < tolerance


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_stays_so(bad: float) -> None:
    weight, _ = example("binary", 4, 128, 64)
    x = vectors(2, 128, torch.float32)
    x[1, 70] = bad
    out = matvec_plain(weight, x)
    assert out[0].isfinite().all()
    assert not out[1].isfinite().any()


def test_what_the_kernels_take() -> None:
    assert supports("binary", 2, (8, 576), 9)
    assert not supports("binary", 3, (8, 576), 9)
    assert not supports("codebook", 2, (8, 576), 9)
    assert not supports("affine", 2, (8, 96), 12)  # groups of 8: a word would belong to two
    assert not supports("affine", 2, (4, 8, 96), 1)  # a stack of experts


@pytest.mark.parametrize("batch", [1, 9, 300])
def test_the_operator_picks_by_the_number_of_vectors(batch: int) -> None:
    weight, exact = example("affine", 6, 256, 128)
    x = vectors(batch, 256, torch.float32).unsqueeze(0)
    scale = torch.rand(256, generator=torch.Generator().manual_seed(1)).half() + 0.5
    for s, inputs in ((None, x), (scale, x.double() / scale.double())):
        out = linear(x, weight.codes, weight.first, weight.second, s, weight.form, weight.rows, weight.groups)
        assert out.shape == (1, batch, 6)
        assert distance(out, inputs.double() @ exact.T) < 1e-4


def test_groups_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="groups of 24 inputs"):
        quantize_pack(torch.randn(2, 48), 24, "r2q")


def kernels_against_float64() -> None:
    """Run in a process of its own: Triton decides at import whether it interprets."""
    from r2q.kernels.matmul_triton import Tile, matmul_triton
    from r2q.kernels.matvec_bits_triton import Strip, matvec_bits
    from r2q.kernels.matvec_triton import Split, matvec_triton
    from r2q.kernels.planes_triton import decode_triton

    empty = torch.empty
    poison = {torch.float16: 999.0, torch.bfloat16: 999.0, torch.float32: 1e9}

    def poisoned(*size: int, **options: object) -> torch.Tensor:
        return empty(*size, **options).fill_(poison.get(options.get("dtype"), 77))  # type: ignore[arg-type, call-overload]

    torch.empty = poisoned  # type: ignore[assignment]
    tiles = (Tile(16, 32, 4, 1), Tile(16, 32, 2, programs=6), Tile(16, 16, 1, 1))
    splits = (Split(16, 4), Split(32, 2), Split(16, 1))
    cases = [(GRIDS[0], *shape) for shape in SHAPES[:4]] + [(kind, *SHAPES[4]) for kind in GRIDS]
    for i, (kind, out, width, group) in enumerate(cases):
        weight, exact = example(kind, out, width, group)
        for dtype in (torch.float16, torch.bfloat16) if width == 48 else (torch.float16,):
            assert torch.allclose(decode_triton(weight, dtype).double(), exact, rtol=2**-7, atol=1e-5)
        x = vectors(17, width, torch.float16)  # the interpreter has no product of bfloat16
        for tile in tiles if i == 0 else [tiles[i % 3]]:
            assert distance(matmul_triton(weight, x, tile), x.double() @ exact.T) < 2e-3, (kind, width, tile)
        for split in splits if i == 0 else [splits[i % 3]]:
            for y in (x[:2], x):
                assert distance(matvec_triton(weight, y, split=split), y.double() @ exact.T) < 2e-3, (
                    kind,
                    width,
                    split,
                )
    strips = (Strip(16, 1), Strip(32, 2, 1), Strip(16, 2, 1))  # a program for each strip, one for all
    for i, (kind, out, width, group) in enumerate([(kind, 39, 192, 64) for kind in GRIDS] + [("affine", 35, 640, 128)]):
        weight, exact = example(kind, out, width, group)
        x = vectors(1, width, torch.float16)
        found = matvec_bits(weight, x, strips[i % 3])
        assert distance(found, x.double() @ exact.T) < 4e-4, (kind, width)  # the result is rounded to 4.9e-4
    x[0, 300] = torch.inf
    assert not matvec_bits(weight, x).isfinite().any()
    for group, dtype in ((32, torch.float32), (48, torch.bfloat16), (144, torch.float16)):
        for values in to_pack(group, dtype):
            for kind in ("r2q", "rtn"):
                compare_packing(values, group, kind)


def kernels_compiled(capability: int) -> None:
    """Every kernel, as its caller starts it, for a GPU that need not be there; in a process of its own."""
    from triton.backends.compiler import GPUTarget
    from triton.runtime import driver
    from triton.runtime.jit import JITFunction

    from r2q.kernels.matmul_triton import matmul_triton
    from r2q.kernels.matvec_bits_triton import counts_bits, matvec_bits
    from r2q.kernels.matvec_triton import matvec_triton
    from r2q.kernels.planes_triton import decode_triton
    from r2q.kernels.quantize_pack_triton import quantize_triton

    target = GPUTarget("cuda", capability, 32)
    compiled = []

    def start(kernel: JITFunction, grid: object) -> Callable[..., None]:
        return lambda *values, **options: compiled.append(kernel.warmup(*values, grid=(1,), **options).asm["cubin"])

    JITFunction.__getitem__ = start
    driver.set_active(
        SimpleNamespace(
            get_current_target=lambda: target, get_current_device=lambda: 0, get_current_stream=lambda device: 0
        )
    )
    torch.cuda.get_device_capability = lambda device: divmod(capability, 10)
    torch.cuda.get_device_properties = lambda device: SimpleNamespace(multi_processor_count=132)
    weight, _ = example("affine", 39, 640, 128)
    for dtype in (torch.float16, torch.bfloat16):
        x = vectors(20, 640, dtype)
        for call in (matmul_triton, matvec_triton):
            call(weight, x)
        matvec_triton(weight, x[:1])
        if counts_bits(weight, x.device):
            matvec_bits(weight, x[:1])
        decode_triton(weight, dtype)
    for kind in ("r2q", "rtn"):
        quantize_triton(torch.randn(4, 256), 128, kind)
    assert len(compiled) == (14 if capability < 100 else 12)  # twice: matmul's two, matvec's two, decode; two to pack
    assert all(compiled)


def to_pack(group: int, dtype: torch.dtype) -> Iterator[torch.Tensor]:
    """Weights ``[4, 2 * group]``: normal ones, mostly zeros of both signs, and steps and half steps of a range."""
    draw = torch.Generator().manual_seed(group)
    values = torch.randn(4, 2 * group, generator=draw)
    yield values.to(dtype)
    yield (values * (torch.rand(values.shape, generator=draw) < 0.2)).to(dtype)
    for low in (0, -0.5, -1, -1.5):
        steps = low + torch.randint(7, (4, 2, group), generator=draw) / 2
        steps[..., 0], steps[..., 1] = low, low + 3
        if dtype == torch.float32:  # beside half a step, where a quotient is rounded
            steps[..., 2:] *= 1 + torch.tensor([-1.0, 1.0, -2.0, 2.0])[:, None, None] * 2**-23
        yield (0.37 * steps if low == -1.5 else steps).view(4, 2 * group).to(dtype)


def compare_packing(values: torch.Tensor, group: int, kind: str) -> None:
    """Scales are the twin's to one place, and codes its codes for these scales."""
    from r2q.kernels.quantize_pack_triton import quantize_triton

    packed, found = finished(*quantize_triton(values, group, kind))
    _, grid = quantize_plain(values.cpu(), group, kind)
    for name, tensor in grid.tensors().items():
        assert torch.allclose(tensor.float(), found.tensors()[name].cpu().float(), rtol=1e-3)
    groups = values.cpu().float().view(len(values), -1, group)
    tensors = {name: tensor.cpu() for name, tensor in found.tensors().items()}
    grid = type(found).from_tensors(tensors, 2, found.shape)
    codes = residual_codes(groups, tensors["alpha"]) if kind == "r2q" else grid.encode(groups)
    assert torch.equal(packed.cpu(), pack(codes.view(values.shape), 2)), (kind, group, values.dtype)


TRITON = Path(sys.prefix, "triton")  # where `make test` puts it


@pytest.mark.skipif(find_spec("triton") is None and not TRITON.is_dir(), reason="needs Triton")
def test_the_kernels_in_the_interpreter() -> None:
    run_alone("kernels_against_float64()", TRITON_INTERPRET="1")


@pytest.mark.skipif(find_spec("triton") is None and not TRITON.is_dir(), reason="needs Triton")
@pytest.mark.parametrize("capability", [80, 90, 120])
def test_the_kernels_compile(capability: int) -> None:
    run_alone(f"kernels_compiled({capability})", TRITON_INTERPRET="0")


def run_alone(call: str, **environment: str) -> None:
    """A function of this file in a process that finds Triton and no GPU."""
    code = f"from tests.kernels import test_packed_kernels as here; here.{call}"
    paths = os.pathsep.join([str(TRITON), *sys.path])
    environment = os.environ | environment | {"CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": paths}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]


def on_gpu(weight: Planes) -> Planes:
    return replace(weight, **{n: getattr(weight, n).cuda() for n in ("codes", "first", "second")})


WIDE = [(37, 576, 32), (130, 4096, 128), (33, 11008, 11008), (6500, 4096, 128), (4300, 4096, 64)]


@needs_gpu
@pytest.mark.parametrize(
    ("kind", "out", "width", "group"),
    [("binary", *shape) for shape in SHAPES + WIDE] + [(kind, *shape) for kind in GRIDS[1:] for shape in WIDE],
)
def test_the_kernels_on_a_gpu(kind: str, out: int, width: int, group: int) -> None:
    from r2q.kernels.matmul_triton import matmul_triton
    from r2q.kernels.matvec_triton import matvec_triton
    from r2q.kernels.planes_triton import decode_triton

    weight, exact = example(kind, out, width, group)
    weight, exact = on_gpu(weight), exact.cuda()
    for dtype in (torch.float16, torch.bfloat16) if width == 4096 else (torch.float16,):
        rounding = torch.finfo(dtype).eps / 2
        assert torch.allclose(decode_triton(weight, dtype).double(), exact, rtol=1.1 * rounding, atol=1e-6)
        for batch in (1, 3, 17, 40, 150):
            x = vectors(batch, width, dtype).cuda()
            wanted = x.double() @ exact.T
            for product in (matmul_triton, matvec_triton, matvec):
                found = product(weight, x)
                assert distance(found, wanted) < 2 * rounding, (product, batch, dtype)
                assert torch.equal(found, product(weight, x))


@needs_gpu
@pytest.mark.parametrize("kind", ["r2q", "rtn"])
@pytest.mark.parametrize("group", [16, 32, 48, 64, 128, 576, 11008])
def test_quantize_pack_with_cuda(group: int, kind: str) -> None:
    for dtype in (torch.float16, torch.bfloat16, torch.float32) if group == 128 else (torch.bfloat16,):
        for values in to_pack(group, dtype):
            compare_packing(values.cuda(), group, kind)


@needs_gpu
@pytest.mark.parametrize("batch", [1, 20, 300])
def test_the_operator_in_a_graph_and_compiled(batch: int) -> None:
    weight, exact = example("binary", 130, 4096, 128)
    weight, x = on_gpu(weight), vectors(batch, 4096, torch.bfloat16).cuda()

    def call(x: torch.Tensor) -> torch.Tensor:
        return linear(x, weight.codes, weight.first, weight.second, None, weight.form, weight.rows, weight.groups)

    eager = call(x)
    assert distance(eager, x.double() @ exact.cuda().T) < 5e-3
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = call(x)
    captured.zero_()
    graph.replay()
    assert torch.equal(captured, eager)
    assert torch.equal(torch.compile(call, fullgraph=True)(x), eager)
