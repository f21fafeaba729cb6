"""The tables that a paper on 2-bit quantization needs, each a choice of rows and columns of the same scores.

Bold: best among recipes of the same nominal bits (2.00 to 2.99 effective bits count as 2). Grey or °: at most one
standard error above chance or the majority rate. ±: standard error over items, or standard deviation over seeds where
there are several.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pandas as pd

from r2q.measure import MIB
from r2q.report.averages import (
    FIDELITY,
    SCORE,
    average_scores,
    by_granularity,
    fidelity_of,
    flags,
    recipes_of,
    unbeaten,
)
from r2q.report.published import beside
from r2q.report.run import FULL_PRECISION, Run, of_bits
from r2q.report.tables.render import MARKS, arrow, label, legend, show_spread
from r2q.report.tables.sheet import NONE, Entry, Sheet
from r2q.report.tables.summary import Cell, Column, Table, show, summarize

GENERATED = ("exact_match", "bleu", "rouge", "f1", "pass@1")  # metrics of written answers, in runs without output types


def fine(run: Run) -> Sheet | None:
    """Groups, every task."""
    return _scores(run, "fine", "Groups of input features", lambda g: g.startswith("g"))


def coarse(run: Run) -> Sheet | None:
    """Whole channels or tensors, every task."""
    return _scores(run, "coarse", "Whole channels and tensors", lambda g: g in ("channel", "tensor"))


def _scores(run: Run, name: str, title: str, fits: Callable[[str], bool]) -> Sheet | None:
    scores = run.scores
    chosen = scores[scores["granularity"].map(fits) | (scores["method"] == FULL_PRECISION)]
    if not chosen["granularity"].map(fits).any():
        return None
    return _of_table(summarize(scores, chosen), name, f"{title}: {scores['run'].iloc[0]}")


def _of_table(table: Table, name: str, title: str) -> Sheet:
    body: list[list[Entry | str]] = []
    lost = []
    for block in table.blocks:
        for row in block.rows:
            lost += [f"{block.model}, {row.recipe} {status}: {reason}." for status, reason in row.failures]
            cells = [
                Entry(show(c.value, k), show_spread(c, k), c.value, c.best, c.at_chance, c.spread)
                for c, k in zip(row.cells, table.columns, strict=True)
            ]
            if row.failed:
                cells = [Entry(row.status), *cells[1:]]
            body.append([block.model, label(row), _number(row.bits, 2), _mib(row.file_bytes), *cells])
    head = ["model", "recipe", "bits", "MiB", *(map(_heading, table.columns) if table.columns else ["status"])]
    return Sheet(name, title, head, body, [*lost, *legend(table)], left=(0, 1))


def families(run: Run) -> Sheet | None:
    """Every recipe on every model: average accuracy."""
    rows = average_scores(run.scores)
    if run.scores["model"].nunique() < 2 or rows.empty:
        return None
    return _pivot(rows, "families", "Families and sizes: average accuracy in percent", "recipe", "model")


def frames(run: Run) -> Sheet | None:
    """Training frames by quantizers: average accuracy. What trains in a way of its own is in no frame."""
    scores = run.framed[(run.scores["kind"] == "training") & (run.scores["frame"].fillna("") != "")]
    if scores["quantizer"].nunique() < 2:
        return None
    facts = scores.drop_duplicates("recipe").set_index("recipe")
    rows = average_scores(run.scores)
    rows = rows[rows["recipe"].isin(facts.index)].reset_index(drop=True)
    named = {r: of_bits(frame, bits) for r, frame, bits in facts[["frame", "bits"]].itertuples(name=None)}
    rows["frame"] = [f"{named[r]}, {facts['granularity'][r]}" for r in rows["recipe"]]
    rows["quantizer"] = [facts["quantizer"][r] for r in rows["recipe"]]
    return _pivot(rows, "frames", "Training frames and quantizers: average accuracy in percent", "frame", "quantizer")


def groups(run: Run) -> Sheet | None:
    """Untrained and trained recipes by granularity: average accuracy."""
    rows = by_granularity(run.framed)
    if rows["granularity"].nunique() < 2:
        return None
    order = list(rows.sort_values("place")["granularity"].unique())
    rows["method"] = rows["family"]
    return _pivot(rows, "groups", "Granularity: average accuracy in percent", "method", "granularity", order)


def residual(run: Run) -> Sheet | None:
    """What the second sign and its refits are worth: weight error, distance to full precision, average accuracy."""
    scores = run.scores
    chosen = scores[(scores["method"] == "r2q") & (scores["kind"] == "weights")]
    if chosen["quantizer"].nunique() < 2:
        return None
    layers = run.layers
    error = layers.groupby(["model", "recipe"])["relative_error"].median()
    points, distance = _indexed(average_scores(scores)), _indexed(fidelity_of(scores))
    body: list[list[Entry | str]] = []
    for row in recipes_of(chosen).to_dict("records"):
        key = (row["model"], row["recipe"])
        body.append([row["model"], row["quantizer"], row["granularity"], _number(row["bits_per_weight"], 2),
                     _number(error.get(key), 3), _ranged(distance.get(key)), _ranged(points.get(key))])  # fmt: skip
    head = ["model", "quantizer", "granularity", "bits", "weight error", _measure(distance), SCORE]
    notes = ["Weight error: median over layers of Σ(w − ŵ)² / Σw². In brackets: 95 % intervals.", *_marks(body)]
    return Sheet("residual", "Ablation of the residual stage", head, body, notes, left=(0, 1, 2))


def generative(run: Run) -> Sheet | None:
    """Tasks whose answer is written, not chosen; by the metric's name where a run does not say which these are."""
    scores = run.scores
    known = scores["output_type"].fillna("") != ""
    wrote = scores["output_type"] == "generate_until"
    if not known.any():
        wrote = scores["metric"].str.partition("/")[0].isin(GENERATED)
    wrote &= flags(scores["in_table"])
    if not wrote.any():
        return None
    whole = scores["task"] == ""  # units of which nothing came
    sheet = _of_table(summarize(scores[wrote | whole]), "generative", "Written answers")
    guessed = "Chosen by the names of their metrics: this run was collected before scores.csv had output types."
    return sheet if known.any() else replace(sheet, notes=[*sheet.notes, guessed])


def cost(run: Run) -> Sheet | None:
    """What each recipe takes to make and to keep."""
    scores = recipes_of(run.scores)
    processors = ["quantize_cpu_seconds", "evaluate_cpu_seconds"]
    units = run.scores.drop_duplicates(["model", "recipe", "seed"])
    used = units.groupby(["model", "recipe"])[processors].mean().to_dict("index")
    seconds = (
        run.layers.groupby(["model", "recipe", "seed"])["seconds"].sum(min_count=1).groupby(["model", "recipe"]).mean()
    )
    trained = run.steps if (run.folder / "training.csv").is_file() else None
    tokens = {}
    if trained is not None:
        whole = trained.groupby(["model", "recipe", "seed"]).agg(tokens=("tokens", "max"), seconds=("seconds", "sum"))
        tokens = whole.groupby(["model", "recipe"]).mean().to_dict("index")
    speeds = run.latency[run.latency["phase"] == "decode"]
    speeds = speeds[(speeds["weights"] == "packed") & (speeds["batch"] == speeds["batch"].min())]
    fastest = speeds.groupby(["model", "recipe"])["tokens_per_second"].max()
    timed = [] if speeds.empty else [f"tokens/s, batch {speeds['batch'].min()}"]
    body: list[list[Entry | str]] = []
    for row in scores.to_dict("records"):
        key = (row["model"], row["recipe"])
        of_training = tokens.get(key, {"tokens": math.nan, "seconds": math.nan})
        body.append([row["model"], row["recipe"], _number(row["bits_per_weight"], 2), _mib(row["file_bytes"]),
                     _number(seconds.get(key), 1), _number(of_training["tokens"], 0),
                     _number(of_training["seconds"], 0), *(_number(used[key][name], 1) for name in processors),
                     _number(row["peak_mib"], 0), *(_number(fastest.get(key), 1) for _ in timed)])  # fmt: skip
    head = ["model", "recipe", "bits", "MiB", "s to quantize", "training tokens", "training s", "CPU s to make",
            "CPU s, evaluation", "peak MiB, evaluation", *timed]  # fmt: skip
    notes = ["Bits: of the quantized layers, scales included. MiB: the whole file, embeddings included.",
             "Seconds to quantize: sum over the layers, where a method quantizes layer by layer.",
             "Training seconds: sum over the steps, without held-out losses; mean over seeds.",
             "CPU seconds: of all threads and child processes (getrusage), mean over seeds.",
             "Peak MiB: of the process in main memory and, where it uses one, on the GPU, added up.",
             *["Tokens/s: packed, compiled where that is faster (see the table latency)." for _ in timed]]  # fmt: skip
    return Sheet("cost", "Cost", head, body, notes, left=(0, 1))


def latency(run: Run) -> Sheet | None:
    """What packed weights take to run, beside 16 bits."""
    rows = run.latency
    if rows.empty:
        return None
    untimed = rows["reason"] != ""
    step = ["model", "recipe", "phase", "batch", "compiled"]
    twins = {tuple(row[name] for name in step): row for row in rows[rows["weights"] == "dense"].to_dict("records")}
    body: list[list[Entry | str]] = []
    for row in rows[(rows["weights"] == "packed") & ~untimed].to_dict("records"):
        twin = twins.get(tuple(row[name] for name in step), dict.fromkeys(rows.columns))
        what = f"{row['phase']}, compiled" if row["compiled"] else row["phase"]
        body.append([row["model"], row["recipe"], what, _number(row["batch"], 0), _time(row), _time(twin),
                     Entry(NONE) if pd.isna(twin["median_ms"]) else _number(twin["median_ms"] / row["median_ms"], 2),
                     _number(row["tokens_per_second"], 1),
                     _number(twin["tokens_per_second"], 1), _mib(row["weight_bytes_read"]),
                     _number(row["share_of_copy_bandwidth"], 2), _mib(row["peak_bytes"]),
                     _mib(twin["peak_bytes"])])  # fmt: skip
    head = ["model", "recipe", "step", "batch", "ms", "ms, 16 bits", "times as fast", "tokens/s", "tokens/s, 16 bits",
            "MiB read", "of copy bandwidth", "peak MiB", "peak MiB, 16 bits"]  # fmt: skip
    known = rows[~untimed].drop_duplicates(["device", "dtype", "context"])
    places = [f"{r['device']}, {r['dtype']}, a context of {r['context']} tokens" for r in known.to_dict("records")]
    notes = [
        *(f"{_untimed(row)}: {row['reason']}." for row in rows[untimed].to_dict("records")),
        *([f"On {'; '.join(places)}."] if places else []),
        "Decode: one more token of every row of the batch, on a GPU as a CUDA graph. Prefill: the context at once.",
        "16 bits: the same model with every weight decoded. In brackets: quartiles of the repeats.",
        "MiB read: of weights in one pass. Copy bandwidth: measured on the same GPU. Peak: memory of the GPU.",
    ]
    return Sheet("latency", "Latency and memory", head, body, notes, left=(0, 1, 2))


def memory(run: Run) -> Sheet | None:
    """Every checkpoint by its size, full precision of smaller models among them."""
    facts = recipes_of(run.scores)[["model", "recipe", "control", "file_bytes", "bits_per_weight"]]
    rows = facts.dropna(subset="file_bytes").merge(average_scores(run.scores), "left", on=["model", "recipe"])
    rows = rows.sort_values("file_bytes", kind="stable")
    best, distance = unbeaten(rows, "file_bytes"), _indexed(fidelity_of(run.scores))
    body: list[list[Entry | str]] = []
    for index, row in rows.to_dict("index").items():
        average = replace(_ranged(None if math.isnan(row["value"]) else row), bold=index in best)
        body.append([row["model"], row["recipe"], _mib(row["file_bytes"]), _number(row["bits_per_weight"], 2),
                     _ranged(distance.get((row["model"], row["recipe"]))), average])  # fmt: skip
    notes = ["Bold: no other file that is as small or smaller has a higher average; controls do not compete, and no "
             "value at chance is best.", "In brackets: 95 % intervals.", *_marks(body)]  # fmt: skip
    head = ["model", "recipe", "MiB", "bits", _measure(distance), SCORE]
    return Sheet("memory", "By file size", head, body, notes, left=(0, 1))


def main(run: Run) -> Sheet | None:
    """Everything in one."""
    return _of_table(summarize(run.scores), "main", f"Every recipe: {run.scores['run'].iloc[0]}")


def published(run: Run) -> Sheet | None:
    """Ours beside what others published."""
    body: list[list[Entry | str]] = []
    for pair in beside(run):
        ours, theirs = pair.ours, pair.published
        column = Column(ours["task"], ours["metric"], True, bool(ours["higher_is_better"]))
        body.append([
            ours["model"], ours["recipe"], column.name, _beside(ours["value"], ours["stderr"], column),
            _beside(theirs["value"], theirs["stderr"], column), "yes" if theirs["conflict"] else "",
            theirs["source"], theirs["harness"], theirs["note"],
        ])  # fmt: skip
    notes = [
        "The same model, method, bits, group, task, metric, window and number of examples; the harness is the "
        "source's.",
        "±: standard error over the items, where it is known.",
        "Disputed: sources give different values for the same definition; all are shown.",
    ]
    head = ["model", "recipe", "number", "ours", "published", "disputed", "source", "harness", "note"]
    return Sheet("published", "Ours beside published numbers", head, body, notes, left=(0, 1, 2, 6, 7, 8))


MADE = (main, fine, coarse, families, residual, frames, generative, groups, cost, latency, memory, published)
TABLES: dict[str, Callable[[Run], Sheet | None]] = {make.__name__: make for make in MADE}  # by the names of their files


def _pivot(rows: pd.DataFrame, name: str, title: str, down: str, across: str, order: list[str] | None = None) -> Sheet:
    """Average accuracies, one row per value of `down` (and model), a column per value of `across`.

    Recipes that would share a cell, such as two learning rates, have a row each, with their names.
    """
    columns = order or list(dict.fromkeys(rows[across]))
    keys = ["model", down] if across != "model" else [down]
    rows = rows.assign(**{down: rows[down].mask(rows.duplicated([*keys, across], keep=False), rows["recipe"])})
    body: list[list[Entry | str]] = []
    for key, part in rows.groupby(keys, sort=False):
        cells = {row[across]: row for row in part.to_dict("records")}
        body.append([*map(str, key), *(_ranged(cells.get(column)) for column in columns)])
    notes = ["Mean over the tasks; a recipe that lacks one has none. In brackets: 95 % intervals."]
    notes += [f"Chance: {rows['chance'].mean():.1f}."] if rows["chance"].notna().any() else []
    notes += _marks(body)
    return Sheet(name, title, [*keys, *columns], body, notes, left=tuple(range(len(keys))))


def _indexed(rows: pd.DataFrame) -> dict[tuple[str, str], dict[Any, Any]]:
    return {(row["model"], row["recipe"]): row for row in rows.to_dict("records")}


def _measure(distances: dict[tuple[str, str], dict[Any, Any]]) -> str:
    """What the distances to full precision are."""
    return str(next(iter(distances.values()))["measure"]) if distances else FIDELITY[1]


def _ranged(row: dict[Any, Any] | None) -> Entry:
    """A number with its interval."""
    if row is None:
        return Entry(NONE)
    column = Column("", "", True, percent=row["measure"] == SCORE)
    value, low, high = (float(row[name]) / (100 if column.percent else 1) for name in ("value", "low", "high"))
    text = show(value, column)
    if not math.isnan(low):
        text += f" ({show(low, column)}, {show(high, column)})"
    return Entry(text, value=float(row["value"]), grey=bool(row["at_chance"]))


def _marks(body: list[list[Entry | str]]) -> list[str]:
    """What ° means, where it stands."""
    return [MARKS[1]] if any(isinstance(cell, Entry) and cell.grey for row in body for cell in row) else []


def _heading(column: Column) -> str:
    return f"{column.name} {arrow(column)}" if column.metric else column.task


def _beside(value: float, stderr: float, column: Column) -> Entry:
    if pd.isna(value):
        return Entry(NONE)
    cell = Cell(value, None if pd.isna(stderr) else stderr)
    return Entry(show(value, column), show_spread(cell, column), value, error=cell.spread)


def _number(value: float | None, places: int) -> Entry:
    return Entry(NONE) if value is None or pd.isna(value) else Entry(f"{value:,.{places}f}", value=float(value))


def _untimed(row: dict[Any, Any]) -> str:
    """What a line of latency.csv without numbers is of: a step, a packed checkpoint or its twin, or both."""
    what = [row["model"], row["recipe"], *["16 bits"] * (row["weights"] == "dense")]
    if row["phase"]:
        what += [row["phase"], *["compiled"] * bool(row["compiled"]), f"batch {row['batch']}"]
    return ", ".join(what)


def _time(row: dict[Any, Any]) -> Entry:
    """Milliseconds, and their quartiles."""
    low, high, value = row["first_quartile_ms"], row["third_quartile_ms"], row["median_ms"]
    if pd.isna(value):
        return Entry(NONE)
    return Entry(f"{value:,.2f} ({low:,.2f}, {high:,.2f})", value=value)


def _mib(value: float | None) -> Entry:
    return Entry(NONE) if value is None or pd.isna(value) else Entry(f"{value / MIB:.2f}", value=float(value) / MIB)
