"""Numbers out of packed models that figures are drawn from. Figures read the CSV and never a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from r2q import config as configuration
from r2q.config import nearest
from r2q.models.load import load_full, load_packed, quiet
from r2q.models.packed import PackedWeight
from r2q.models.source import model_folder
from r2q.models.targets import list_targets
from r2q.records import OK, Report, read_json, sign, write_csv


def lattice(config_path: str | Path, results: str | Path, out: str | Path) -> None:
    """Write where RTN and R2Q put every weight of one group, for the figures lattice and mechanism.

    The group is the one that `figures.lattice` of the config names. Columns of the CSV: recipe, method, model, layer,
    row, group, index (of the weight in its group), weight, code, quantized, level_0 ... (the level of each code).

    Args:
        config_path: the run's config.
        results: the run's folder of packed units.
        out: the CSV to write.

    Raises:
        ValueError: no two recipes to show, an unknown layer, or a row or group outside of it; a unit that failed.
        FileNotFoundError: a unit is not there.
    """
    config = configuration.load(config_path)
    wanted = config.figures.lattice
    units = config.lattice_units()
    if units is None:
        raise ValueError(
            f"the lattice figure needs for {wanted.model or ' or '.join(config.models)} a recipe rtn and a recipe r2q "
            "with default options, both with the same group size or channel and the same bits"
        )
    model, recipes = units
    quiet()
    entry = config.models[model]
    targets = {target.name: target.weight for target in list_targets(load_full(str(model_folder(entry))))}
    layer = wanted.layer or next(iter(targets))
    if layer not in targets:
        names = [*targets]
        raise ValueError(f"figures.lattice.layer: {model} has no layer {layer}{nearest(layer, names)}")
    rows: list[dict[str, Any]] = []
    for recipe in recipes:
        folder = Path(results) / model / recipe / f"seed{config.seeds_of(recipe, model)[0]}"
        points = _group_rows(folder, recipe, model, layer, targets[layer], wanted.row, wanted.group)
        rows += [{"method": config.recipes[recipe].method} | point for point in points]
    write_csv(out, list(rows[0]), rows)
    sign(Path(out).with_suffix(".sha256"), [out])


def _group_rows(
    folder: Path, recipe: str, model: str, layer: str, weight: torch.Tensor, row: int, group: int
) -> list[dict[str, Any]]:
    report = folder / "report.json"
    if not report.is_file():
        raise FileNotFoundError(f"no {report}: the lattice figure needs this unit")
    record = read_json(report, Report)
    if record.status != OK:
        raise ValueError(f"the lattice figure needs {recipe} of {model}, which {record.status}: {record.reason}")
    packed = load_packed(folder).get_submodule(layer)
    if not isinstance(packed, PackedWeight):
        raise ValueError(f"{folder}: {layer} is not packed")
    quantized = packed.quantized()
    shape = quantized.grid.shape  # rows, groups
    if row >= shape[0] or group >= shape[1]:
        raise ValueError(
            f"figures.lattice: {layer} with {recipe} has rows 0 to {shape[0] - 1} and groups 0 to {shape[1] - 1}, "
            f"not row {row}, group {group}"
        )
    levels = quantized.grid.levels()[row, group].tolist()
    codes = quantized.codes.reshape(*shape, -1)[row, group].tolist()
    values = quantized.dequantize().reshape(*shape, -1)[row, group].tolist()
    originals = weight.detach().float().reshape(*shape, -1)[row, group].tolist()
    return [
        {"recipe": recipe, "model": model, "layer": layer, "row": row, "group": group, "index": index}
        | {"weight": original, "code": code, "quantized": value}
        | {f"level_{j}": level for j, level in enumerate(levels)}
        for index, (original, code, value) in enumerate(zip(originals, codes, values, strict=True))
    ]
