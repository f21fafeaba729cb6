"""One page that shows a run, or several: verdicts, the headline figure, a table that sorts and filters, all figures.

A single HTML file that needs no network and works without script: figures are inline SVG, links lead from every number
to the unit it is of, and each unit says which recipe, options and hashes it has, where its raw JSON lies and which
command makes it again. Sorting is tablesort (vendor/, MIT).
"""

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd

from r2q.intact import sign
from r2q.kept import write_atomic
from r2q.plan import Unit
from r2q.records import OK, read_drawn
from r2q.report.claims import GRANULARITY
from r2q.report.claims.markdown import ENDS, GAINS, STARTS, interval, measured, overall
from r2q.report.figures import find
from r2q.report.run import Run
from r2q.report.tables.paper import latency
from r2q.report.tables.render import legend, show_bits, show_spread, size_unit
from r2q.report.tables.summary import Block, Row, Table, show, summarize

HERE = Path(__file__).parent
HEADLINE = "frontier-bytes"


def page(runs: Sequence[str | Path], out: str | Path, figures: str | Path | None = None) -> None:
    """Write the page of one run's folder, or of several, to `out`.

    Raises:
        FileNotFoundError, ValueError: a run lacks its scores, or its CSV are damaged; there is no folder `figures`.
    """
    if figures is not None and not Path(figures).is_dir():
        raise FileNotFoundError(f"figures: there is no folder {figures}")
    if figures is not None and len(runs) > 1:
        raise ValueError(f"figures: {figures} is of one run, not of {len(runs)}; each has its own in figures/<run>")
    described = [
        _describe(Path(run), None if figures is None else Path(figures), f"run{i}-" if i else "")
        for i, run in enumerate(runs)
    ]
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    script = (HERE / "vendor" / "tablesort.min.js").read_text(encoding="utf-8")
    text = environment.get_template("page.html.jinja").render(
        runs=described, title=" and ".join(run["name"] for run in described), tablesort=script, show=show,
        show_spread=show_spread,
    )  # fmt: skip
    write_atomic(out, text)
    sign(Path(out).with_suffix(".sha256"), [out])


def _describe(folder: Path, figures: Path | None, prefix: str) -> dict[str, Any]:
    """All that the page says of a run; ids that begin with `prefix` are its own."""
    run = Run(folder)
    table = summarize(run.scores)
    name = str(run.scores["run"].iloc[0])
    drawn = list(_drawings(figures or folder.parent.parent / "figures" / name, prefix))
    unit, size = size_unit(table)
    facts = run.scores.drop_duplicates(["model", "recipe"]).set_index(["model", "recipe"])
    return {
        "name": name,
        "id": prefix + name,
        "sources": run.sources,
        "verdicts": list(_verdicts(folder)),
        "headline": next((drawing for drawing in drawn if drawing["name"] == HEADLINE), None),
        "figures": [drawing for drawing in drawn if drawing["name"] != HEADLINE],
        "columns": table.columns,
        "size_unit": unit,
        "rows": [_row(table, block, row, facts, size, prefix) for block in table.blocks for row in block.rows],
        "filters": _filters(table, facts),
        "legend": legend(table),
        "latency": latency(run),
        "failures": [
            (block.model, row.recipe, failure.status, failure.reason)
            for block in table.blocks
            for row in block.rows
            for failure in row.failures
        ],
        "units": list(_units(run, folder, prefix)),
    }


def _verdicts(folder: Path) -> Iterator[dict[str, Any]]:
    """The claims over all models, as `claims.md` has them; none where the run has no claims.

    `first` are those of the paper against its first rival, at equal granularity: what a reader looks for.
    """
    path = folder / "tables" / "claims.csv"
    if not path.is_file():
        return
    rows, ends = read_drawn(path, ()), ["difference", "low", "high"]
    rows[ends] = rows[ends].apply(pd.to_numeric)  # an empty column is read as texts
    records = ({str(k): None if pd.isna(v) else v for k, v in row.items()} for row in rows.to_dict("records"))
    for row in overall(list(records)):
        yield {
            "claim": str(row["claim"]), "verdict": str(row["verdict"]), "number": measured(row),
            "interval": interval(row),
            "against": f"{row['quantizer']} against {row['other']}", "where": f"{row['frame']}, {row['granularity']}",
            "first": (row["other"], row["pairing"]) == (rows["other"].iloc[0], GRANULARITY)
            and row["claim"] not in (STARTS, ENDS, GAINS),
        }  # fmt: skip


def _drawings(folder: Path, prefix: str) -> Iterator[dict[str, str]]:
    """Every figure of the run that `figure` drew and signed, the headline first."""
    signed = sorted(folder.glob("*.sha256"), key=lambda path: (path.stem != HEADLINE, path.stem))
    for path in (manifest.with_suffix(".svg") for manifest in signed):
        if path.with_suffix(".csv").read_text(encoding="utf-8").count("\n") < 2:
            continue  # the run has nothing to draw there
        module, _ = find(path.stem)
        svg = path.read_text(encoding="utf-8")
        svg = svg[svg.index("<svg") :]
        ids = prefix + re.sub(r"\W", "-", path.stem)  # of one figure: two of one page must not share any
        svg = re.sub(r'\bid="', f'id="{ids}-', svg)
        svg = re.sub(r'(xlink:href="#|url\(#)', rf"\g<1>{ids}-", svg)
        label = f'<svg role="img" aria-label="{path.stem}: see the caption"'
        yield {"name": path.stem, "caption": module.CAPTION, "svg": svg.replace("<svg", label, 1)}


def _row(table: Table, block: Block, row: Row, facts: pd.DataFrame, size: Any, prefix: str) -> dict[str, Any]:
    known: Any = facts.loc[(block.model, row.recipe)] if (block.model, row.recipe) in facts.index else None
    return {
        "model": block.model,
        "recipe": row.recipe,
        "unit": None if known is None else prefix + unit_id(block.model, row.recipe, int(known["seed"])),
        "kind": "level" if known is None else str(known["kind"]),
        "granularity": "" if known is None else str(known["granularity"] or "none"),
        "nominal": "" if row.bits is None else str(int(row.bits)),
        "bits": show_bits(row),
        "bits_sort": row.bits or "",
        "size": size(row),
        "size_sort": row.file_bytes or "",
        "seeds": row.seeds or "",
        "failed": row.reasons if row.failed else "",
        "cells": list(zip(row.cells, table.columns, strict=True)),
    }


def _filters(table: Table, facts: pd.DataFrame) -> dict[str, list[str]]:
    nominal = sorted(
        {str(int(row.bits)) for block in table.blocks for row in block.rows if row.bits is not None}, key=int
    )
    return {
        "model": [block.model for block in table.blocks],
        "granularity": [str(value) for value in dict.fromkeys(facts["granularity"]) if value],
        "kind": [str(value) for value in dict.fromkeys(facts["kind"])],
        "nominal": nominal,
    }


def unit_id(model: str, recipe: str, seed: int) -> str:
    """The anchor of a unit on the page."""
    return f"unit-{model}-{recipe}-seed{seed}"


def _units(run: Run, folder: Path, prefix: str) -> Iterator[dict[str, Any]]:
    """What is behind the numbers of a row: a recipe and seed of a model."""
    for unit, rows in run.scores.groupby(["model", "recipe", "seed"], sort=False):
        model, recipe, seed = map(str, unit)  # type: ignore[call-overload]
        digest = str(rows["provenance"].iloc[0])
        record = run.provenance.get(digest, {})
        asked = record.get("config", {}).get("recipe", {})
        options = {key: value for key, value in asked.items() if key not in ("name", "seeds")}
        place = (folder / Unit(model, recipe, int(seed)).path).as_posix()
        bad = rows[rows["status"] != OK]
        yield {
            "id": prefix + unit_id(model, recipe, int(seed)),
            "model": model,
            "recipe": recipe,
            "seed": seed,
            "status": str(bad["status"].iloc[0]) if len(bad) else OK,
            "folder": place,
            "command": f"snakemake {place}/evaluation.json --cores all --configfile {folder.as_posix()}/config.yaml",
            "options": json.dumps(options),
            "provenance": digest,
            "hashes": _texts(record.get("weights")) | _texts(record.get("code")) | _texts(record.get("data")),
            "numbers": [  # what, value, items
                (f"{row['task']} {row['metric']}", "" if pd.isna(row["value"]) else repr(float(row["value"])),
                 "" if pd.isna(row["n"]) else str(row["n"]))
                for row in rows.to_dict("records")
                if row["task"]
            ],
        }  # fmt: skip


def _texts(part: Any) -> dict[str, str]:
    return {str(key): str(value)[:16] for key, value in (part or {}).items() if value}
