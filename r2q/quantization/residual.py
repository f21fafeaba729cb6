r"""R2Q: two one-bit quantizations in a row.

For the weights w of a group (R2Q, arXiv 2511.21736; the same map as the greedy start of Xu et al. 2018, arXiv
1802.00150, ``greedy_mean_torch`` of LUT-GEMM and ``LSBQuantizer.quantize_greedy`` of torchao):

    alpha_1 = mean |w|                      r = w - alpha_1 sign(w)
    alpha_2 = mean |r|                      w ~ alpha_1 sign(w) + alpha_2 sign(r)

with sign(0) = +1. Each scale is the least-squares one for its signs, so the error of a group is exactly

    mean (w - w~)^2 = mean w^2 - alpha_1^2 - alpha_2^2

(before the scales are rounded to 16 bits). For N(0, 1): alpha_1 = sqrt(2 / pi) = 0.79788, alpha_2 = 0.48262, error
0.13045. With more bits the residual is binarized again. An all-zero group gets zero scales and hence zeros.

Each scale is rounded to its stored type before the next residual and the codes are formed. R2Q is not idempotent:
more than half of |w| lies below its mean, so quantizing R2Q's own output moves it again.
"""

from collections.abc import Sequence

import torch

from r2q.quantization.grid import BinaryGrid, Grid, stored
from r2q.quantization.method import WeightMethod
from r2q.quantization.options import Options

SINGULAR = 1e-6  # what is left of a sign vector of length 1 beside the others


def residual_scales(values: torch.Tensor, bits: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Greedy scales ``[rows, groups, bits]`` of ``values [rows, groups, n]``, each rounded to ``dtype`` first.

    Raises:
        ValueError: a weight is not finite or a scale does not fit into 16 bits.
    """
    magnitude = values.abs()
    scales = []
    for step in range(bits):
        scale = magnitude.mean(-1, keepdim=True)  # [rows, groups, 1]
        scales.append(stored(scale) if dtype == torch.float16 else scale.to(dtype))
        if step + 1 < bits:  # |r_next| = ||r| - alpha|, whatever the sign of r
            magnitude = magnitude.sub_(scales[-1].to(values.dtype)).abs_()
    return torch.cat(scales, -1)


def residual_codes(values: torch.Tensor, alpha: torch.Tensor) -> torch.Tensor:
    """Codes (uint8) of ``values [rows, groups, n]`` by successive signs of the residual; bit i is set for +alpha_i."""
    scale, residual = alpha.float(), values + 0.0  # -0 becomes +0, so that copysign agrees with sign(0) = +1
    codes = (residual >= 0).to(torch.uint8)
    for i in range(1, alpha.shape[-1]):
        residual = residual - torch.copysign(scale[..., i - 1 : i], residual)
        codes = torch.add(codes, (residual >= 0).to(torch.uint8), alpha=1 << i)
    return codes


def nearest_codes(values: torch.Tensor, alpha: torch.Tensor) -> torch.Tensor:
    """Codes (uint8) of the nearest levels, for scales in descending order; ties go up.

    Up to two such scales, successive signs are the nearest levels: the boundaries are 0 and +-alpha_1.
    """
    return residual_codes(values, alpha) if alpha.shape[-1] <= 2 else BinaryGrid(alpha).encode(values)


def refit(values: torch.Tensor, alpha: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
    """Least-squares scales for fixed signs, ``(B^T B)^-1 B^T w`` per group, largest first (float32).

    A group keeps its old scales where the system is singular (its sign vectors depend on each other) or where
    rounding would make the fit worse. Negative scales are turned positive: nearest codes flip with them.
    """
    bits, n = range(alpha.shape[-1]), values.shape[-1]
    signs = [((codes >> i) & 1).to(values.dtype).mul_(2).sub_(1) for i in bits]
    moment = [(sign * values).mean(-1) for sign in signs]  # B^T w / n
    gram = [[torch.ones_like(moment[0])] * len(bits) for _ in bits]  # B^T B / n
    for i in bits:
        for j in range(i):
            gram[i][j] = gram[j][i] = (signs[i] * signs[j]).sum(-1) / n
    new, regular = solve(gram, moment)

    def error(a: Sequence[torch.Tensor]) -> torch.Tensor:  # mean square error, less the constant mean w^2
        parts = [a[i] * (sum(gram[i][j] * a[j] for j in bits) - 2 * moment[i]) for i in bits]
        return torch.stack(parts).sum(0)

    better = regular & (error(new) <= error(alpha.unbind(-1)))
    return torch.where(better.unsqueeze(-1), torch.stack(new, -1), alpha).abs().sort(-1, descending=True).values


def solve(
    matrix: Sequence[Sequence[torch.Tensor]], right: Sequence[torch.Tensor]
) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Solution of many small symmetric, positive systems at once, and where there is one (bool), by elimination."""
    rows = [[*row, value] for row, value in zip(matrix, right, strict=True)]
    count = len(rows)
    regular = torch.ones_like(right[0], dtype=torch.bool)
    for i in range(count):
        regular = regular & (rows[i][i] > SINGULAR)
        for j in range(i + 1, count):
            factor = rows[j][i] / rows[i][i]
            rows[j] = [b - factor * a for a, b in zip(rows[i], rows[j], strict=True)]
    solution: list[torch.Tensor] = []
    for i in reversed(range(count)):
        known = sum(rows[i][count - k] * solution[-k] for k in range(1, len(solution) + 1))
        solution.insert(0, (rows[i][count] - known) / rows[i][i])
    return solution, regular & torch.stack(solution).isfinite().all(0)


def optimal_scales(values: torch.Tensor) -> torch.Tensor:
    """The two scales of least error over all assignments (float32 ``[rows, groups, 2]``), by exhaustion.

    Levels ``+-(a1 - a2), +-(a1 + a2)`` are two magnitudes with free signs, so the best pair is the best split of the
    sorted magnitudes into a lower and an upper part (two means on a line): every split is tried. Least-squares
    binary quantization, as ``quantize_optimal_2bits`` of torchao means to do.
    """
    magnitude = values.abs().double().sort(-1).values  # [rows, groups, n]
    n = magnitude.shape[-1]
    if n == 1:
        return torch.cat([magnitude, torch.zeros_like(magnitude)], -1).float()
    total = magnitude.cumsum(-1)
    count = torch.arange(1, n, dtype=torch.float64, device=values.device)
    below, whole = total[..., :-1], total[..., -1:]
    gain = below**2 / count + (whole - below) ** 2 / (n - count)  # mean-square explained by the split, times n
    split = gain.argmax(-1, keepdim=True)  # first of equals
    low = below.gather(-1, split) / (split + 1)
    high = (whole - below.gather(-1, split)) / (n - 1 - split)
    return torch.cat([(high + low) / 2, (high - low) / 2], -1).float()


class R2Q(WeightMethod):
    """Residual refinement quantization, with the refinements it has to be compared with."""

    Options = Options
    version = 2

    def fit_groups(self, values: torch.Tensor) -> Grid:
        bits, refine = self.recipe.bits, self.options.refine
        if refine == "none":
            return BinaryGrid(residual_scales(values, bits, torch.float16))
        if refine == "optimal":
            if bits != 2:
                raise ValueError(f"refine: optimal is for 2 bits, not {bits}")
            return BinaryGrid(stored(optimal_scales(values)))
        alpha = residual_scales(values, bits)
        codes = residual_codes(values, alpha)
        for _ in range(self.options.rounds if refine == "alternating" else 1):
            alpha = refit(values, alpha, codes)
            codes = nearest_codes(values, alpha)
        return BinaryGrid(stored(alpha))

    def encode_groups(self, values: torch.Tensor, grid: Grid) -> torch.Tensor:
        assign = residual_codes if self.options.refine == "none" else nearest_codes
        return assign(values, grid.tensors()["alpha"])
