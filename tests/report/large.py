"""A run with as many recipes as a study has, and names as long: 72, half of them trained with three seeds."""

from pathlib import Path
from typing import Any

import numpy as np

from r2q.records import LayerRow, Score, Step, columns, write_csv

QUALITY = {"weights": 0.1, "calibration": 0.3, "training": 0.6}  # made up
FRAMES = (
    ("weights", None, ""),
    ("calibration", "gptq", ""),
    ("training", "bitdistiller", ""),
    ("training", "bitdistiller", "long"),
)
QUANTIZERS = ("rtn", "rtn-clip", "r2q", "r2q-alternating", "hqq", "llm_qat (gptq-llm_qat start)")
BITS = {"g64": 2.28, "g32": 2.5, "channel": 2.03}
STEPS = {"": 256, "long": 1024}
TASKS = ("piqa", "arc_easy", "arc_challenge", "boolq", "openbookqa", "winogrande", "sciq", "social_iqa")
KINDS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def large_run(folder: Path) -> Path:
    """Write scores.csv, layers.csv and training.csv of one model."""
    random, scores, layers, training = np.random.default_rng(0), [], [], []
    for unit, quality in _units():
        for task in TASKS:
            value = 0.3 + 0.4 * quality + 0.05 * random.random()
            row = {"task": task, "metric": "acc", "value": value, "stderr": 0.01, "n": 1000, "chance": 0.25}
            scores.append(unit | row | {"higher_is_better": True})
        kl = 10 * (1 - quality) ** 2 * (1 + 0.2 * random.random())
        row = {"task": "fidelity", "metric": "kl", "value": kl, "stderr": 0.02 * kl, "n": 64}
        scores.append(unit | row | {"higher_is_better": False})
        if unit["kind"] == "training":
            steps = STEPS["long" if "long" in unit["recipe"] else ""]
            shared = {name: unit[name] for name in columns(Step) if name in unit}
            training.append(dict.fromkeys(columns(Step), 0.0) | shared | {"step": 1, "steps": steps})
        for i in range(0 if unit["control"] else 30):
            for kind in KINDS:
                row = dict.fromkeys(columns(LayerRow)) | {"layer": f"{i}.{kind}", "block": i, "kind": kind}
                row |= {"shape": "9x9"} | {name: unit[name] for name in ("model", "recipe", "seed")}
                layers.append(row | {"relative_error": 0.1 + 0.2 * random.random()})
    write_csv(folder / "scores.csv", columns(Score), scores)
    write_csv(folder / "layers.csv", columns(LayerRow), layers)
    write_csv(folder / "training.csv", columns(Step), training)
    return folder


def _units() -> list[tuple[dict[str, Any], float]]:
    """What the rows of each unit have in common, and how good it is made."""
    empty: dict[str, Any] = dict.fromkeys(columns(Score))
    empty |= {"run": "large", "model": "smollm2-135m", "status": "ok", "reason": "", "in_table": True}
    full = {"recipe": "full_precision", "method": "full_precision", "quantizer": "full_precision", "kind": "weights",
            "granularity": "", "bits_per_weight": 32.0, "file_bytes": 10**9, "control": True, "seed": 0}  # fmt: skip
    found = [(empty | full, 1.0)]
    for kind, frame, long in FRAMES:
        for quantizer in QUANTIZERS:
            for granularity, bits in BITS.items():
                name = "-".join(filter(None, [frame, long, quantizer.partition(" ")[0], granularity]))
                bits += 0.1 * quantizer.startswith("r2q")
                unit = {"recipe": name, "method": frame or "rtn", "frame": frame, "quantizer": quantizer, "kind": kind}
                unit |= {"granularity": granularity, "bits_per_weight": bits, "file_bytes": int(3e7 * bits)}
                for seed in range(3 if kind == "training" else 1):
                    found.append((empty | unit | {"control": False, "seed": seed}, QUALITY[kind]))
    return found
