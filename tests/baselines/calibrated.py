"""Random calibration text for the tiny models, and short settings of the methods that look at it."""

from typing import Any

import torch

from r2q.models.calibration import Calibration, tokens_sha256
from r2q.models.targets import list_targets
from r2q.quantization.method import Quantized, Recipe, make_method

SHORT: dict[str, dict[str, Any]] = {
    "awq": {"exponents": 5, "clip_steps": 3},
    "bitdistiller_clip": {"steps": 3},
    "omniquant_lwc": {"epochs": 3, "batch": 2},
    "efficientqat_block": {"epochs": 2, "rate": 1e-3, "weight_rate": 1e-3},
}


def text(seed: int = 0, windows: int = 6, window: int = 16) -> Calibration:
    """Windows of random tokens for :mod:`tests.models.tiny`."""
    tokens = torch.randint(3, 96, (windows + 1, window), generator=torch.Generator().manual_seed(seed))
    used, held_out = tokens[:windows], tokens[windows:]
    facts = {"source": "random", "seed": str(seed), "first_token": "3", "sha256": tokens_sha256(used, held_out)}
    return Calibration(used, held_out, facts, minimum_tokens=8)


def quantize(
    name: str, model: Any, granularity: str = "g32", seed: int = 0, lm_head: bool = False, **options: Any
) -> Quantized:
    """A method applied to a model with calibration text of a seed."""
    recipe = Recipe(f"{name}-{granularity}", name, granularity, options=options, lm_head=lm_head)
    return make_method(recipe).quantize(model, list_targets(model, lm_head), text(seed))


def same(one: Quantized, other: Quantized) -> bool:
    """Whether two results are bit-identical."""
    return one.layers.keys() == other.layers.keys() and all(
        torch.equal(one.layers[name].dequantize(), other.layers[name].dequantize()) for name in one.layers
    )
