"""The rates of the cost model, fitted to measurements, and how far measurements are off that were held back.

    python -m benchmarks.costs            # the table of errors
    python -m benchmarks.costs --write    # also r2q/plan/rates.csv

`costs.csv` holds what was measured, with the place where that is written down; what `held_back` marks takes no part in
the fit. All rates are fitted at once, least squares of the logarithms. A measurement is a training step, a pass,
generation, a recipe on a model, or a peak of memory (`PREDICT`).
"""

import argparse
import csv
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from r2q.config import method_info
from r2q.plan import cost
from r2q.plan.shapes import Shape, catalogue, count
from r2q.training.options import TrainingOptions

MEASURED = Path(__file__).with_name("costs.csv")
MINI = Path(__file__).parents[1] / "mini/models/mini-llama/config.json"
LENGTH = 1024  # tokens a row in `benchmarks/training.py`
PUBLISHED = {"llama-7b": "huggyllama/llama-7b", "opt-6.7b": "facebook/opt-6.7b", "qwen3-8b": "Qwen/Qwen3-8B-Base"}
LLAMA_70B = {"hidden_size": 8192, "intermediate_size": 28672, "num_attention_heads": 64, "num_key_value_heads": 8}
Settings = Mapping[str, Any]


@dataclass(frozen=True)
class Measurement:
    """A line of costs.csv."""

    kind: str
    model: str
    settings: Settings
    measured: float
    unit: str
    held_back: bool
    source: str

    @property
    def name(self) -> str:
        return ", ".join([self.kind, self.model, *(f"{key} {value}" for key, value in self.settings.items())])

    def predicted(self, rates: cost.Rates) -> float:
        """What the model says, in the same unit."""
        settings = dict(self.settings)
        shape = shape_of(self.model)
        if "layers" in settings:
            shape = with_layers(shape, settings.pop("layers"))
        value = PREDICT[self.kind](rates, shape, settings)
        return value / cost.GIB if self.unit == "GiB" else value


def shape_of(model: str) -> Shape:
    """The shape of a model that was measured."""
    known = catalogue()
    if model == "mini-llama":
        return count(json.loads(MINI.read_bytes()))
    if model == "llama-2-70b":
        return count(known["meta-llama/Llama-2-7b-hf"] | LLAMA_70B | {"num_hidden_layers": 80})
    names = PUBLISHED | {"tinyllama-1.1b": "TinyLlama/TinyLlama_v1.1"}
    return count(known[names.get(model) or next(path for path in known if "SmolLM2-135M" in path)])


def with_layers(shape: Shape, layers: int) -> Shape:
    """The same model with so many blocks."""
    quantized, active = shape.block * layers, shape.active // shape.layers * layers
    total = shape.total - shape.quantized + quantized  # norms of the other blocks are left in
    return replace(shape, layers=layers, total=total, quantized=quantized, active=active)


def options_of(settings: Settings, **more: Any) -> TrainingOptions:
    """Of `benchmarks/training.py`, where the settings do not say otherwise."""
    plain = {"loss": "cakld", "batch_rows": 8, "latent": "bfloat16"}
    return TrainingOptions(**plain | {"activation_checkpointing": True} | more | settings)


def method_of(settings: Settings) -> tuple[str, dict[str, Any], tuple[int, int], tuple[str, dict[str, Any]] | None]:
    """Method (GPTQ without one), its options, windows and their length to calibrate on, what it quantizes with."""
    given = {"method": "gptq"} | dict(settings)
    method, calibration = given.pop("method"), (given.pop("windows"), given.pop("window"))
    options = method_info(method).options.read(given)
    filled = options.model_dump()
    inner = (filled["quantizer"], filled["quantizer_options"]) if "quantizer" in filled else None
    return method, filled, calibration, inner


def quantize(rates: cost.Rates, device: str, shape: Shape, settings: Settings) -> float:
    method, options, calibration, inner = method_of(settings)
    seconds = cost.quantize_seconds(rates, device, shape, method, options, calibration, inner)
    with_errors = device == "cpu" or inner is None
    return seconds if with_errors else seconds - cost.errors_seconds(rates, device, shape, *calibration)


def unit(rates: cost.Rates, shape: Shape, settings: Settings) -> float:
    """A unit at g128 as its report.json times it: a model read, quantized, its errors measured, packed and written."""
    method, options, calibration, inner = method_of(settings)
    seconds = cost.quantize_seconds(rates, "gpu", shape, method, options, calibration, inner)
    return seconds + (2 * shape.total + shape.quantized * (2 + 32 / 128) / 8) / rates["disk.rate"]


def quantize_memory(rates: cost.Rates, shape: Shape, settings: Settings) -> float:
    method, options, calibration, _ = method_of(settings)
    calibrated = method_info(method).needs == "calibration"
    return cost.quantize_bytes(rates, shape, method, options, calibration if calibrated else None, False)


def cpu_train(rates: cost.Rates, shape: Shape, settings: Settings) -> float:
    given = dict(settings)
    length, held_out = given.pop("length"), given.pop("held_out")
    options = options_of(given, latent="float32", activation_checkpointing=False)
    return cost.train_seconds(rates, "cpu", shape, options, length, held_out, 1)


PREDICT: Mapping[str, Callable[[cost.Rates, Shape, Settings], float]] = {
    "step": lambda r, m, s: cost.step_seconds(r, "gpu", m, options_of(s), LENGTH, 1),
    "train memory": lambda r, m, s: cost.train_bytes(r, "gpu", m, options_of(s), LENGTH, 1),
    "forward": lambda r, m, s: cost.forward_seconds(r, "gpu", m, **s),
    "generate": lambda r, m, s: cost.generate_seconds(r, "gpu", m, s["batch"], **s),
    "handling": lambda r, m, s: m.quantized * r["gpu.handling"],
    "feedback": lambda r, m, s: m.quantized * r["gpu.feedback"],
    "sweep": lambda r, m, s: m.quantized * r["gpu.sweep"],
    "errors": lambda r, m, s: cost.errors_seconds(r, "gpu", m, **s),
    "quantize": lambda r, m, s: quantize(r, "gpu", m, s),
    "unit": unit,
    "quantize memory": quantize_memory,
    "evaluate memory": lambda r, m, s: cost.evaluate_bytes(r, m, 2, s.get("batch", 1), s.get("window", 1)),
    "cpu forward": lambda r, m, s: cost.forward_seconds(r, "cpu", m, **s),
    "cpu sweep": lambda r, m, s: s["sweeps"] * m.quantized * r["cpu.sweep"],
    "cpu quantize": lambda r, m, s: quantize(r, "cpu", m, s),
    "cpu train": cpu_train,
    "cpu evaluate memory": lambda r, m, s: cost.host_bytes(r, m, 4, r["host.loaded"], s.get("tokens", 0)),
}


def measurements() -> list[Measurement]:
    """All that was measured."""
    with MEASURED.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return [
        Measurement(
            row["kind"], row["model"], json.loads(row["settings"]), float(row["measured"]), row["unit"],
            row["held_back"] == "held back", row["source"],
        )
        for row in rows
    ]  # fmt: skip


def fit(rows: list[dict[str, str]]) -> list[dict[str, str]]:
    """The lines of rates.csv with what is fitted fitted anew, from the values that stand there."""
    import numpy as np
    from scipy.optimize import least_squares

    names = [row["name"] for row in rows if row["basis"] == "fit"]
    start = {row["name"]: float(row["value"]) for row in rows}
    used = [one for one in measurements() if not one.held_back]

    def rates(logarithms: Any) -> dict[str, float]:
        return start | dict(zip(names, map(float, np.exp(logarithms)), strict=True))

    def residuals(logarithms: Any) -> list[float]:
        values = rates(logarithms)
        return [math.log(one.predicted(values) / one.measured) for one in used]

    found = rates(least_squares(residuals, [math.log(start[name]) for name in names], x_scale=0.1).x)
    return [row | ({"value": f"{found[row['name']]:.3g}"} if row["name"] in names else {}) for row in rows]


def held_back(unit: str, device: str, rates: cost.Rates) -> list[float]:
    """Prediction over measurement less one, of what was held back with a unit (`s`, `GiB`), on `gpu` or `cpu`."""
    chosen = [m for m in measurements() if m.held_back and m.unit == unit]
    return [m.predicted(rates) / m.measured - 1 for m in chosen if m.kind.startswith("cpu") == (device == "cpu")]


KINDS = (("s", "gpu", "times on a GPU"), ("GiB", "gpu", "its memory"), ("s", "cpu", "times on a CPU"))


def stated(rates: cost.Rates) -> str:
    """The errors in one sentence, as config/README.md has them."""
    parts = []
    for unit, device, what in KINDS:
        found = held_back(unit, device, rates)
        parts.append(f"{what} {min(found):+.0%} to {max(found):+.0%} ({len(found)})")
    return ", ".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="fit anew and write r2q/plan/rates.csv")
    given = parser.parse_args()
    with cost.FILE.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    if given.write:
        rows = fit(rows)
        with cost.FILE.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
    rates = {row["name"]: float(row["value"]) for row in rows}
    for one in measurements():
        error = one.predicted(rates) / one.measured - 1
        kind = "held back" if one.held_back else "fitted"
        print(f"{kind:9}  {error:+6.1%}  {one.measured:>10g} {one.unit:3}  {one.name}")
    print(f"held back: {stated(rates)}")


if __name__ == "__main__":
    main()
