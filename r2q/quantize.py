"""The verb ``quantize``: one recipe with one seed on one model, into a packed folder with a report."""

import math
import re
import traceback
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from dataclasses import replace as replace_fields
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch

from r2q import config as configuration
from r2q.config import ConfigError, nearest
from r2q.failures import one_line, transient
from r2q.intact import digest_files, missing_files
from r2q.kept import PATHS, key
from r2q.measure import MIB, Measured, package_of, versions
from r2q.models.apply import FAILURES, apply, formula_bytes
from r2q.models.calibration import Calibration, check_tokenizer, load_calibration
from r2q.models.card import describe_source, mean_errors
from r2q.models.checks import read_tokenizer, small_files, weight_files
from r2q.models.external import adopt
from r2q.models.load import load_full
from r2q.models.save import clear, cleared, folder_digest, save
from r2q.models.targets import list_targets
from r2q.plan import Plan, Unit
from r2q.plan.sources import method_code
from r2q.prepare import open_model
from r2q.quantization.method import CheckpointMethod, Recipe, make_method, recipe_of
from r2q.records import DIVERGED, FAILED, ITEMS, OK, RAW, SAMPLES, Layer, Report, read_if_whole, write_record
from r2q.training.data import TrainingData
from r2q.training.start import LATENT, write_latent
from r2q.training.trainer import Diverged
from r2q.training.unit import CHECKPOINTS, drop_checkpoints, read_training, training_identity, with_folders

NOT_OURS = ("report.json", "evaluation.json", RAW, ITEMS, SAMPLES)  # in a unit's folder, but no result of quantizing
OUTSIDE = (ImportError, *PATHS)  # of a method: its row is tried again by the next run


def quantize(
    config_path: str | Path,
    prepared: str | Path,
    model: str,
    recipe: str,
    seed: int,
    out: str | Path,
    calibration: str | Path | None = None,
    training: str | Path | None = None,
    start: str | Path | None = None,
) -> None:
    """Quantize ``model`` with a recipe and seed into the folder ``out``.

    ``calibration`` is the file that the verb ``calibrate`` wrote; with one, the report also has the layers' output
    errors on its held-out windows. ``training`` is the file that ``teacher-data`` wrote, ``start`` the packed folder
    that a recipe starts from; one that trains leaves its records, and its checkpoints until it is done, in
    ``out/training/``.

    A unit whose key (recipe, model weights, code, libraries) and files have not changed is kept. A recipe that fails
    is a report with status ``failed``, or ``diverged`` where its training did, and the reason; where that is a fault in
    the method's code, its traceback is printed.

    Raises:
        ConfigError: the config is wrong, or does not have this model or recipe.
        ValueError: a group size does not divide a layer, the model is already quantized, a recipe needs calibration
            tokens or training data that are not given, or ``out`` holds somebody else's model; before any work.
    """
    config, out = configuration.load(config_path, model), Path(out)
    if recipe not in config.recipes:
        raise ConfigError(f"{config_path}: recipes: unknown recipe {recipe}{nearest(recipe, config.recipes)}")
    facts, source, device = open_model(config, prepared, model, ("family", "fingerprint"))
    _refuse_others(out, source, Path(Plan(config).results, Unit(model, recipe, seed).path))
    unit, data = recipe_of(config, recipe, seed), None
    needs = configuration.method_info(unit.method).needs
    if calibration is not None:
        how = config.calibration or configuration.Calibration(path="unknown")
        data = load_calibration(calibration, device, how.offload, how.minimum_tokens)
    if data is None and needs == "calibration":
        raise ValueError(f"recipe {recipe} needs calibration tokens: `r2q calibrate` writes them")
    if training is None and needs == "training":
        raise ValueError(f"recipe {recipe} needs training data: `r2q teacher-data` writes it")
    tokenizer = read_tokenizer(source)
    if data is not None:
        check_tokenizer(data, tokenizer, model)
    identity, rows = _identity(unit, facts["fingerprint"], device, data), None
    if training is not None and needs == "training":
        rows = read_training(Path(training), device, config.limits.training_processes)
        rows = with_folders(rows, out / "training", None if start is None else Path(start))
        identity |= training_identity(unit, rows)
        rows = replace_fields(rows, identity=key(identity))
    progress = f"quantize {model} {recipe} seed {seed}:"
    report = read_if_whole(out / "report.json", Report)
    leaves = config.starts_training(recipe)
    description = configuration.describe_recipe(config, unit.name)
    asked = Plan(config).asked("quantize", Unit(model, recipe, seed))
    limits = {"threads": config.limits.threads} if device.type == "cpu" else {}
    limits |= {"training_processes": config.limits.training_processes} if rows is not None else {}
    if report is not None and report.key == key(identity) and _whole(report, out, leaves):
        same = replace_fields(report, facts=description, asked=asked)  # words about the recipe, no part of its result
        if same != report:
            write_record(out / "report.json", same)
        print(f"{progress} kept", flush=True)
        return
    with Measured() as cost:
        about = {**describe_source(config.models[model], source), "facts": description}
        record = _unit(unit, source, tokenizer, out, device, data, rows, leaves, about)
    hashes = record["hashes"] | {"source": facts["fingerprint"], "code": identity["code"]}
    hashes |= {"calibration": data.facts["sha256"]} if data is not None else {}
    hashes |= {"training": rows.digest} if rows is not None else {}
    files = _files(out)
    whole = record["status"] == OK  # else there are no weights, and the unit is made again anyway
    hashes["files"] = digest_files(out, _besides(out, files)) if whole else None
    report = Report(
        key=key(identity),
        model=model,
        family=facts["family"],
        recipe=recipe,
        seed=seed,
        method=unit.method,
        granularity=unit.granularity,
        group_size=configuration.group_size(unit.granularity),
        options=unit.options,
        facts=description,
        asked=asked,
        limits=limits,
        versions=identity["versions"],
        files=files,
        **cost.spent,
        **record | {"hashes": hashes, "layers": [_layer(layer) for layer in record["layers"]]},
    )
    write_record(out / "report.json", report)
    if report.status == OK:
        drop_checkpoints(out / "training")
    if "output_errors" in report.notes:
        print(f"{progress} output errors {report.notes['output_errors']}", flush=True)
    print(f"{progress} {_summary(report)}", flush=True)


def _whole(report: Report, folder: Path, leaves: bool) -> bool:
    """Whether all that a unit wrote is still there as it was."""
    intact = report.status == OK and not missing_files(folder, report.files)
    intact = intact and (not leaves or LATENT in report.files)
    intact = intact and folder_digest(folder) == report.hashes["weights"]
    return intact and digest_files(folder, _besides(folder, report.files)) == report.hashes.get("files")


def _besides(folder: Path, files: Iterable[str]) -> list[str]:
    """Those of a unit's files that its model is not read from."""
    read = {file.name for file in [*small_files(folder), *weight_files(folder)]}
    return [name for name in files if name not in read]


def _files(folder: Path) -> dict[str, int]:
    """Bytes of every file that is a part of the unit's result, by its path in the folder."""
    passing_by = {*NOT_OURS, *(f"training/{pattern}" for pattern in CHECKPOINTS), "*/.*", ".*"}
    names = {file.relative_to(folder).as_posix(): file for file in sorted(folder.rglob("*")) if file.is_file()}
    result = [name for name in names if not any(fnmatch(name, pattern) for pattern in passing_by)]
    return {name: names[name].stat().st_size for name in result}


def _layer(described: dict[str, Any]) -> Layer:
    """The record of a layer; what only its method knows becomes notes."""
    known = {part.name for part in fields(Layer)}
    notes = {name: value for name, value in described.items() if name not in known}
    block, kind = place_of(described["name"])
    return Layer(**{n: v for n, v in described.items() if n in known}, block=block, kind=kind, notes=notes)


CONTAINERS = ("self_attn", "mlp", "block_sparse_moe", "attention")  # parts of a layer's name that say nothing


def place_of(layer: str) -> tuple[int | None, str]:
    """`model.layers.3.mlp.experts.5.w1` is `experts.w1` in block 3; a layer outside of the blocks has none."""
    block = re.search(r"(?:^|\.)(\d+)\.", layer)
    if not block:
        return None, layer.rsplit(".", 1)[-1]
    rest = layer[block.end() :].split(".")
    return int(block[1]), ".".join(part for part in rest if part not in CONTAINERS and not part.isdigit())


def _refuse_others(out: Path, source: Path, own: Path) -> None:
    """Refuse a folder whose model would be deleted and is not of this verb: it leaves a report, or stopped in `own`."""
    if out.resolve() == source.resolve():
        raise ValueError(f"--out: {out} is the model that is to be quantized; name another folder")
    if out.resolve() != own.resolve() and not (out / "report.json").is_file() and (lost := cleared(out)):
        raise ValueError(f"--out: {lost[0]} was not written by `quantize` and would be lost; name another folder")


def _identity(recipe: Recipe, fingerprint: str, device: torch.device, data: Calibration | None) -> dict[str, Any]:
    """Everything that can move a packed file or its report."""
    looked_at = {} if data is None else {"tokens": data.facts["sha256"], "minimum_tokens": data.minimum_tokens}
    return {
        "calibration": looked_at,
        "recipe": dict(vars(recipe)),
        "source": fingerprint,
        "device": device.type,
        "code": method_code(recipe.method, recipe.options),
        "versions": versions("torch", "transformers", "safetensors", *_packages(recipe)),
    }


def _packages(recipe: Recipe) -> list[str]:
    """Installed packages that the recipe's method and quantizer come from, where they are not ours."""
    packages = (package_of(info.module) for info in configuration.methods_named(recipe.method, recipe.options))
    return sorted({package for package in packages if package is not None})


def _unit(
    recipe: Recipe,
    source: Path,
    tokenizer: Any,
    folder: Path,
    device: torch.device,
    data: Calibration | None,
    training: TrainingData | None,
    leaves: bool,
    about: Mapping[str, Any],
) -> dict[str, Any]:
    """Quantize and write one unit; the fields of its report that only this work gives."""
    model = load_full(str(source))
    record: dict[str, Any] = {
        "status": OK,
        "reason": "",
        "bits": recipe.bits,
        "bits_per_weight": None,
        "quantized_weights": 0,
        "total_parameters": sum(p.numel() for p in model.parameters()),
        "file_bytes": None,
        "formula_bytes": None,
        "layers": [],
        "notes": {},
        "hashes": {"weights": None},
    }
    targets = list_targets(model, recipe.lm_head)
    if recipe.granularity is not None:
        for target in targets:
            recipe.group_size(target.weight.shape[-1], target.name)
    element_bits = 8 * targets[0].weight.element_size()
    try:
        if training is not None and training.reason:
            raise ValueError(training.reason)
        latent: dict[str, torch.Tensor] | None = {} if leaves else None
        with _faults_named(recipe):
            method = make_method(recipe)
            if isinstance(method, CheckpointMethod):
                return record | adopt(method, model, targets, tokenizer, folder, device)
            layers, notes = apply(method, model, targets, device, data, training, latent)
        about = {**about, "errors": mean_errors(layers)}
        digests = save(model, tokenizer, folder, dict(vars(recipe)), about)
        if latent is not None:
            write_latent(folder, latent)
    except (*FAILURES, *OUTSIDE) as error:
        clear(folder)
        reason, diverged = _noted(error, error), isinstance(error, Diverged)
        if diverged:  # "diverged at step 4: loss nan": the status says the first word
            reason = reason.removeprefix("diverged at ").replace(": ", ", ", 1)
        return record | {"status": DIVERGED if diverged else FAILED, "reason": reason, "retry": transient(error)}
    weights = sum(math.prod(layer["shape"]) for layer in layers)
    layer_bits = sum(layer["bits_per_weight"] * math.prod(layer["shape"]) for layer in layers)
    return record | {
        "bits": recipe.bits if layers else element_bits,
        "bits_per_weight": layer_bits / weights if layers else float(element_bits),
        "quantized_weights": weights,
        "file_bytes": sum((folder / file).stat().st_size for file in digests),
        "formula_bytes": formula_bytes(model),
        "layers": layers,
        "notes": notes,
        "hashes": {"weights": folder_digest(folder)},
    }


@contextmanager
def _faults_named(recipe: Recipe) -> Iterator[None]:
    """Make a sentence of what a method raises by mistake, and print its traceback: the other recipes go on.

    Trouble of the machine (a full disk, a lost GPU) stays what it is, and ends the job. What a method makes of a
    file or library that was not there is its own.

    Raises:
        ValueError: names the method, the layer where it is known, and the error.
    """
    try:
        yield
    except (*FAILURES, *OUTSIDE):
        raise
    except (Exception, SystemExit) as error:
        if transient(error, OUTSIDE):
            raise
        traceback.print_exc()
        kind_and_text = next(line for line in traceback.format_exception_only(error) if not line.startswith(" "))
        names = " on ".join(info.label for info in configuration.methods_named(recipe.method, recipe.options))
        raise ValueError(f"method {names}: {_noted(error, kind_and_text)}") from error


def _noted(error: BaseException, text: object) -> str:
    """What is said of an error as one line, after the layer that `Method.at` added to it."""
    return ": ".join([*getattr(error, "__notes__", []), one_line(text)])


def _summary(report: Report) -> str:
    if report.status != OK:
        return f"{report.status.upper()}: {report.reason}"
    weights = sum(math.prod(layer.shape) for layer in report.layers)
    error = sum(layer.mse * math.prod(layer.shape) for layer in report.layers) / weights if weights else 0.0
    size = f"{report.bits_per_weight:.2f} bits/weight, {(report.file_bytes or 0) / MIB:.2f} MiB"
    return f"{size}, weight MSE {error:.3g}, {report.seconds:.1f} s, peak {report.peak_mib:.0f} MiB"
