"""The verb ``quantize``: recipes of one model, each into a packed folder of its own, with a report."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import replace as replace_fields
from pathlib import Path
from typing import Any

import torch

from r2q import config as configuration
from r2q.kept import Kept, key, source_hash, write_json
from r2q.measure import Measured, versions
from r2q.models.apply import FAILURES, apply, formula_bytes, make_method, pick_device
from r2q.models.calibration import Calibration, check_tokenizer, load_calibration
from r2q.models.external import adopt
from r2q.models.fingerprint import check_unchanged
from r2q.models.load import load_full, load_tokenizer, quiet
from r2q.models.save import folder_digest, save, weights_digest
from r2q.models.source import model_folder
from r2q.models.targets import list_targets
from r2q.quantization.method import CheckpointMethod, Recipe
from r2q.status import DIVERGED, FAILED, OK, in_words, parts
from r2q.training.data import TrainingData
from r2q.training.trainer import Diverged
from r2q.training.unit import drop_checkpoints, has_records, read_training, start_folder, training_identity

FORMAT_VERSION = 1


def quantize(
    config_path: str | Path,
    prepared: str | Path,
    model: str,
    recipes: list[str],
    out: str | Path,
    calibration: str | Path | None = None,
    training: str | Path | None = None,
) -> None:
    """Quantize ``model`` with each recipe and seed into ``out/<recipe>/seed<k>/``.

    ``calibration`` is the file that the verb ``calibrate`` wrote; with one, every report also has the layers' output
    errors on its held-out windows. ``training`` is the file that ``teacher-data`` wrote; a recipe that trains leaves
    its records, and its checkpoints until it is done, in ``out/<recipe>/seed<k>/training/``.

    A unit whose key (recipe, model weights, code, libraries) and files have not changed is kept. A recipe that fails
    is a report with status ``failed``, or ``diverged`` where its training did, and the reason; the others go on.

    Raises:
        ConfigError: the config is wrong, or does not have this model or recipe.
        ValueError: a group size does not divide a layer, the model is already quantized, or a recipe needs calibration
            tokens or training data that are not given; before any work.
    """
    config = configuration.load(config_path)
    facts = json.loads(Path(prepared).read_text())["models"][model]
    entry = config.models[model]
    device = pick_device(config.device)
    torch.set_num_threads(config.limits.threads)
    quiet()
    units = [recipe for name in recipes for recipe in units_of(config, name, model)]
    data = None
    if calibration is not None:
        how = config.calibration or configuration.Calibration(source="unknown")
        data = load_calibration(calibration, device, how.offload, how.minimum_tokens)
    for recipe in units:
        if data is None and configuration.method_info(recipe.method).needs == "calibration":
            raise ValueError(f"recipe {recipe.name} needs calibration tokens: `r2q calibrate` writes them")
        if training is None and configuration.method_info(recipe.method).needs == "training":
            raise ValueError(f"recipe {recipe.name} needs training data: `r2q teacher-data` writes it")
    rows = None if training is None else read_training(Path(training), device, config.limits.training_processes)
    source = model_folder(entry)
    check_unchanged(source, facts)
    tokenizer = load_tokenizer(str(source))
    if data is not None:
        check_tokenizer(data, tokenizer, model)
    out = Path(out)
    kept = Kept(out.parent / ".kept")
    for number, recipe in enumerate(units, 1):
        folder = out / recipe.name / f"seed{recipe.seed}"
        identity = _identity(recipe, facts["fingerprint"], device, data)
        lessons = None
        if rows is not None and configuration.method_info(recipe.method).needs == "training":
            start = start_folder(config, recipe, model, out)
            lessons = replace_fields(rows, folder=folder / "training", start=start)
            identity |= training_identity(recipe, lessons)
            lessons = replace_fields(lessons, identity=key(identity))
        progress = f"quantize {model} {number}/{len(units)} {recipe.name} seed {recipe.seed}:"
        record = kept.get("quantize", key(identity), folder / "report.json")
        whole = lessons is None or has_records(folder / "training")
        if record is not None and whole and record["hashes"]["weights"] == folder_digest(folder):
            print(f"{progress} kept", flush=True)
            continue
        with Measured() as cost:
            record = _unit(recipe, source, tokenizer, folder, device, data, lessons)
        record |= {
            "format_version": FORMAT_VERSION,
            "key": key(identity),
            "model": model,
            "family": facts["family"],
            "source_format": facts.get("source_format"),
            "seconds": cost.seconds,
            "peak_mib": cost.peak_mib,
            "versions": identity["versions"],
        }
        record["hashes"] |= {"source": facts["fingerprint"], "code": identity["code"]}
        if data is not None:
            record["hashes"]["calibration"] = data.facts["sha256"]
        if lessons is not None:
            record["hashes"]["training"] = lessons.digest
        if record["status"] == OK:
            kept.put("quantize", key(identity), record, folder / "report.json")
            drop_checkpoints(folder / "training")
        else:  # not kept: the reason may be gone the next time (memory, a library)
            write_json(folder / "report.json", record)
        print(f"{progress} {_summary(record)}", flush=True)


def units_of(config: configuration.Config, name: str, model: str) -> Iterator[Recipe]:
    """A model's recipe, once for each of its seeds, with every option filled in."""
    entry = config.recipes[name]
    options = configuration.method_info(entry.method).options.model_validate(entry.options).model_dump(mode="json")
    for seed in config.seeds_of(name, model):
        yield Recipe(name, entry.method, entry.granularity, entry.bits, seed, options, entry.lm_head)


def _identity(
    recipe: Recipe, fingerprint: str, device: torch.device, data: Calibration | None = None
) -> dict[str, Any]:
    """Everything that can move a packed file or its report."""
    info = configuration.method_info(recipe.method)
    looked_at = {} if data is None else {"tokens": data.facts["sha256"], "minimum_tokens": data.minimum_tokens}
    return {
        "calibration": looked_at,
        "recipe": dict(vars(recipe)),
        "source": fingerprint,
        "device": device.type,
        "code": source_hash(["r2q/quantize.py", "r2q/models", "r2q/quantization", "r2q/kernels", info.path]),
        "versions": versions("torch", "transformers", "safetensors"),
    }


def _unit(
    recipe: Recipe,
    source: Path,
    tokenizer: Any,
    folder: Path,
    device: torch.device,
    data: Calibration | None = None,
    training: TrainingData | None = None,
) -> dict[str, Any]:
    """Quantize, write and describe one unit."""
    record: dict[str, Any] = {
        "status": OK,
        "error": None,
        "recipe": recipe.name,
        "method": recipe.method,
        "granularity": recipe.granularity,
        "group_size": recipe.fixed_group_size,
        "bits": recipe.bits,
        "seed": recipe.seed,
        "options": recipe.options,
    }
    model = load_full(str(source))
    total = sum(p.numel() for p in model.parameters())
    targets = list_targets(model, recipe.lm_head)
    if recipe.granularity is not None:
        for target in targets:
            recipe.group_size(target.weight.shape[-1], target.name)
    element_bits = 8 * targets[0].weight.element_size()
    method = make_method(recipe)
    try:
        if isinstance(method, CheckpointMethod):
            return record | adopt(method, model, targets, tokenizer, folder, device)
        layers, notes = apply(method, model, targets, device, data, training)
        digests = save(model, tokenizer, folder, dict(vars(recipe)))
    except FAILURES as error:
        for stale in folder.glob("*.safetensors"):  # of an earlier attempt: never beside this report
            stale.unlink()
        return record | {
            "status": DIVERGED if isinstance(error, Diverged) else FAILED,
            "error": " ".join(str(error).split()) or type(error).__name__,
            "bits_per_weight": None,
            "quantized_weights": 0,
            "total_parameters": total,
            "file_bytes": None,
            "formula_bytes": None,
            "layers": [],
            "notes": {},
            "hashes": {"weights": None},
        }
    weights = sum(math.prod(layer["shape"]) for layer in layers)
    layer_bits = sum(layer["bits_per_weight"] * math.prod(layer["shape"]) for layer in layers)
    return record | {
        "bits": recipe.bits if layers else element_bits,
        "bits_per_weight": layer_bits / weights if layers else float(element_bits),
        "quantized_weights": weights,
        "total_parameters": total,
        "file_bytes": sum((folder / file).stat().st_size for file in digests),
        "formula_bytes": formula_bytes(model),
        "layers": layers,
        "notes": notes,
        "hashes": {"weights": weights_digest(digests)},
    }


def _summary(record: dict[str, Any]) -> str:
    if record["status"] != OK:
        status, reason = parts(in_words(record))
        return f"{status.upper()}: {reason}"
    weights = sum(math.prod(layer["shape"]) for layer in record["layers"])
    error = sum(layer["mse"] * math.prod(layer["shape"]) for layer in record["layers"]) / weights if weights else 0.0
    size = f"{record['bits_per_weight']:.2f} bits/weight, {record['file_bytes'] / 2**20:.2f} MiB"
    return f"{size}, weight MSE {error:.3g}, {record['seconds']:.1f} s, peak {record['peak_mib']:.0f} MiB"
