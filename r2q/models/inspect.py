"""Numbers out of packed models that figures are drawn from. Figures read the CSV and never a model."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from r2q import config as configuration
from r2q.config import Config
from r2q.intact import sign
from r2q.models.load import load_full, load_packed, quiet
from r2q.models.packed import PackedWeight
from r2q.models.source import model_folder
from r2q.models.targets import list_targets
from r2q.prepare import read_prepared
from r2q.quantization.method import QuantizedWeight
from r2q.records import OK, Report, read_json, write_csv

COLUMNS = ("method", "recipe", "model", "layer", "row", "group", "percentile", "index", "weight", "code", "quantized")


def lattice(config_path: str | Path, results: str | Path, out: str | Path) -> None:
    """Write where recipes put every weight of one group, for the figures lattice and mechanism.

    The group is the one that `figures.lattice` of the config names; where it names none, the one whose relative error,
    summed over the recipes, is the median of the layer (of the row). Columns of the CSV: method, recipe, model, layer,
    row, group, percentile (of the group's relative error among all of the layer, 0 to 100), index (of the weight in
    its group), weight, code, quantized, level_0 ... (the level of each code). Weights of a method that scales inputs
    are scaled: what is put on levels. A recipe of which the unit failed is left out, and said.

    Raises:
        ValueError: no two recipes to show, an unknown layer, or a row or group outside of it.
        FileNotFoundError: a unit, or what `prepare` wrote, is not there.
    """
    config = configuration.load(config_path)
    figure = config.figures.lattice
    chosen = config.lattice_units()
    if chosen is None:
        raise ValueError(f"{config_path}: {configuration.lattice_lacks(config)}")
    model, recipes = chosen
    quiet()
    commit = read_prepared(Path(results, model, "prepared.json"), model).get("commit")
    folder = model_folder(config.models[model], commit)
    targets = {target.name: target.weight for target in list_targets(load_full(str(folder)))}
    layers = [{"name": name, "shape": list(weight.shape)} for name, weight in targets.items()]
    for problem in configuration.lattice_problems(config, model, {"targets": layers}):
        raise ValueError(problem)
    layer = figure.layer or next(iter(targets))
    units = {recipe: _quantized(config, Path(results), model, recipe, layer) for recipe in recipes}
    shown = {recipe: unit for recipe, unit in units.items() if unit is not None}
    errors = {recipe: _relative_errors(unit, targets[layer]) for recipe, unit in shown.items()}
    if shown:
        row, group = _pick(torch.stack([*errors.values()]).sum(0), figure.row, figure.group)
    rows: list[dict[str, Any]] = []
    for recipe, unit in shown.items():
        place: dict[str, Any] = {"method": config.recipes[recipe].method, "recipe": recipe, "model": model}
        place |= {"layer": layer, "row": row, "group": group}
        place["percentile"] = 100 * float((errors[recipe] <= errors[recipe][row, group]).float().mean())
        rows += [place | point for point in _points(unit, targets[layer], row, group)]
    columns = [*COLUMNS, *(f"level_{j}" for j in range(2 ** max(config.recipes[recipe].bits for recipe in recipes)))]
    write_csv(out, columns, [dict.fromkeys(columns) | point for point in rows])
    sign(Path(out).with_suffix(".sha256"), [out])


def _quantized(config: Config, results: Path, model: str, recipe: str, layer: str) -> QuantizedWeight | None:
    """What a unit made of a layer; None, with a word, of one that failed."""
    folder = results / model / recipe / f"seed{config.seeds_of(recipe, model)[0]}"
    if not (folder / "report.json").is_file():
        raise FileNotFoundError(f"no {folder / 'report.json'}: the lattice figure needs this unit")
    record = read_json(folder / "report.json", Report)
    if record.status != OK:
        print(f"lattice: without {recipe} of {model}, which {record.status}: {record.reason}", flush=True)
        return None
    packed = load_packed(folder).get_submodule(layer)
    if not isinstance(packed, PackedWeight):
        raise ValueError(f"{folder}: {layer} is not packed")
    return packed.quantized()


def _scaled(unit: QuantizedWeight, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights and what became of them, float32 [rows, groups, n], both as they stand on the levels."""
    scale = 1 if unit.in_scale is None else unit.in_scale.float()
    original, decoded = weight.detach().float() * scale, replace(unit, in_scale=None).dequantize()
    return original.reshape(*unit.grid.shape, -1), decoded.reshape(*unit.grid.shape, -1)


def _relative_errors(unit: QuantizedWeight, weight: torch.Tensor) -> torch.Tensor:
    """Squared error over squared weights of every group [rows, groups]; 0 where all weights are."""
    original, decoded = _scaled(unit, weight)
    return (decoded - original).square().sum(-1) / original.square().sum(-1).clamp_min(torch.finfo().tiny)


def _pick(errors: torch.Tensor, row: int | None, group: int | None) -> tuple[int, int]:
    """Row and group as they are asked for; what is not, so that the error is the lower median of all that remain."""
    left = errors[slice(None) if row is None else slice(row, row + 1)]
    left = left[:, slice(None) if group is None else slice(group, group + 1)]
    place = int(left.flatten().median(0).indices)
    return (place // left.shape[1] if row is None else row), (place % left.shape[1] if group is None else group)


def _points(unit: QuantizedWeight, weight: torch.Tensor, row: int, group: int) -> Iterator[dict[str, Any]]:
    levels = {f"level_{j}": level for j, level in enumerate(unit.grid.levels()[row, group].tolist())}
    codes = unit.codes.reshape(*unit.grid.shape, -1)[row, group].tolist()
    originals, values = (part[row, group].tolist() for part in _scaled(unit, weight))
    for index, (original, code, value) in enumerate(zip(originals, codes, values, strict=True)):
        yield {"index": index, "weight": original, "code": code, "quantized": value} | levels
