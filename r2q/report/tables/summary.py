"""The main table as data: which rows and columns there are, what is best, what is no better than chance.

`summarize(scores)` decides; `r2q.report.tables.render` only writes it down.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean, stdev
from typing import NamedTuple

import pandas as pd

from r2q.records import FAILED, OK
from r2q.report.averages import Average, in_table, shares, unit_averages
from r2q.report.run import FULL_PRECISION
from r2q.report.statistics import at_chance
from r2q.report.tables.sheet import NONE

AVERAGE = "average"
Averages = Mapping[tuple[str, str, int], Average]


@dataclass(frozen=True)
class Column:
    """One (task, metric); the average has no metric."""

    task: str
    metric: str
    higher_is_better: bool
    percent: bool  # an accuracy, shown times 100 and averaged
    n: tuple[int, int] | None = None  # least and most items

    @property
    def name(self) -> str:
        return f"{self.task} {self.metric}".strip()


@dataclass(frozen=True)
class Cell:
    """A mean over seeds; `spread` is its standard error, or with several seeds the standard deviation over them."""

    value: float | None = None
    stderr: float | None = None
    sd: float | None = None
    best: bool = False
    at_chance: bool = False

    @property
    def spread(self) -> float | None:
        return self.stderr if self.sd is None else self.sd


class Failure(NamedTuple):
    """A seed or a number that is not there: `failed` or `diverged`, and which one and why."""

    status: str
    reason: str


@dataclass(frozen=True)
class Row:
    """A line of a block."""

    recipe: str  # "chance", "majority" or a recipe's name
    method: str = ""
    control: bool = False
    bits: float | None = None
    file_bytes: float | None = None
    seeds: int = 0  # that have values
    failures: tuple[Failure, ...] = ()  # what is not there
    cells: tuple[Cell, ...] = ()

    @property
    def failed(self) -> bool:
        """Whether no seed has a value."""
        return self.seeds == 0 and bool(self.failures)

    @property
    def status(self) -> str:
        """`diverged` where all that is not there is so, `failed` where something failed, `ok` where all is there."""
        words = {failure.status for failure in self.failures}
        return FAILED if len(words) > 1 else next(iter(words), OK)

    @property
    def reasons(self) -> str:
        """Each status with its reasons: `diverged: seed 1: step 4, loss nan`; "" where all is there."""
        words = dict.fromkeys(failure.status for failure in self.failures)
        grouped = {word: [failure.reason for failure in self.failures if failure.status == word] for word in words}
        return "; ".join(f"{word}: {'; '.join(reasons)}" for word, reasons in grouped.items())


@dataclass(frozen=True)
class Block:
    model: str
    family: str
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class Table:
    columns: tuple[Column, ...]
    blocks: tuple[Block, ...] = field(default=())


def summarize(scores: pd.DataFrame, chosen: pd.DataFrame | None = None) -> Table:
    """The main table of one run's scores (records `Score`), or of those rows of them that are `chosen`.

    What is a share, and an average, follows from all of the run. A block per model in the order of the scores; in it
    chance and majority, where a task has them, full precision, then the recipes by effective bits. Where all failed
    there are no columns. Raises ValueError when something went well and nothing of it stands in the table, or when one
    task has two chance levels for one model.
    """
    shown = in_table(scores)
    columns = table_columns(shown)
    if not columns and (scores.empty or (scores["status"] == OK).any()):
        raise ValueError("no score has in_table = True, so there is no table to write")
    averages = unit_averages(scores)
    chosen = scores if chosen is None else chosen
    blocks = [
        _block(model, chosen[chosen["model"] == model], shown[shown["model"] == model], columns, averages)
        for model in dict.fromkeys(chosen["model"])
    ]
    return Table(tuple(columns), tuple(blocks))


def table_columns(shown: pd.DataFrame) -> list[Column]:
    """Perplexities and other errors first, then accuracies, then their average; else in the order of the scores."""
    columns, percent = [], shares(shown)
    for (task, metric), rows in shown.groupby(["task", "metric"], sort=False):
        counts = rows["n"].dropna()
        n = (int(counts.min()), int(counts.max())) if len(counts) else None
        higher = bool(rows["higher_is_better"].iloc[0])
        columns.append(Column(str(task), str(metric), higher, (task, metric) in percent, n))
    columns.sort(key=lambda column: column.higher_is_better)  # stable
    if sum(column.percent for column in columns) > 1:
        columns.append(Column(AVERAGE, "", True, True))
    return columns


def _block(
    model: str, everything: pd.DataFrame, shown: pd.DataFrame, columns: Sequence[Column], averages: Averages
) -> Block:
    chance = _level_row("chance", model, shown, columns)
    majority = _level_row("majority", model, shown, columns, instead=chance)
    pairs = zip(chance.cells, majority.cells, strict=True)
    floor = [max((cell.value for cell in pair if cell.value is not None), default=None) for pair in pairs]
    rows = [
        _recipe_row(recipe, everything[everything["recipe"] == recipe], columns, floor, averages)
        for recipe in dict.fromkeys(everything["recipe"])
    ]
    rows.sort(key=lambda row: (row.method != FULL_PRECISION, row.bits is None, row.bits or 0.0))  # stable
    levels = [row for row in (chance, majority) if any(cell.value is not None for cell in row.cells)]
    return Block(model, str(everything["family"].iloc[0]), (*levels, *_mark_best(rows, columns)))


def _level_row(
    level: str, model: str, shown: pd.DataFrame, columns: Sequence[Column], instead: Row | None = None
) -> Row:
    """The chance or majority row, from what the scores themselves say about each task.

    A free answer has no majority; in the average the level of the row `instead` stands for it.
    """
    values: list[float | None] = []
    for column in columns:
        if not column.metric:
            known = [
                instead.cells[j].value if value is None and instead else value
                for j, value in enumerate(values)
                if columns[j].percent
            ]
            values.append(_mean(known))
            continue
        levels = set(shown.loc[(shown["task"] == column.task) & (shown["metric"] == column.metric), level].dropna())
        if len(levels) > 1:
            raise ValueError(f"model {model}, {column.name}: {level} should be one number, not {sorted(levels)}")
        values.append(float(levels.pop()) if levels else None)
    return Row(level, cells=tuple(Cell(value) for value in values))


def _recipe_row(
    recipe: str, rows: pd.DataFrame, columns: Sequence[Column], floor: Sequence[float | None], averages: Averages
) -> Row:
    named = rows.groupby(["model", "recipe", "seed"], sort=False)
    units = [_unit(unit, columns, averages.get(name)) for name, unit in named]  # type: ignore[arg-type]
    units = [unit for unit in units if any(cell.value is not None for cell in unit)]
    several = rows["seed"].nunique() > 1
    failures = []
    for row in rows[rows["status"] != OK].to_dict("records"):
        where = [f"seed {row['seed']}"] if several else []
        where += [f"{row['task']} {row['metric']}"] if row["task"] else []
        failures.append(Failure(row["status"], f"{', '.join(where)}: {row['reason']}" if where else row["reason"]))
    cells = tuple(
        _over_seeds([unit[i] for unit in units], None if not column.higher_is_better else floor[i])
        for i, column in enumerate(columns)
    )
    first, sizes = rows.iloc[0], rows[["bits_per_weight", "file_bytes"]].max()  # where one seed failed, of another
    bits, size = (None if pd.isna(largest) else float(largest) for largest in sizes)
    return Row(recipe, str(first["method"]), bool(first["control"]), bits, size, len(units), tuple(failures), cells)


def _unit(rows: pd.DataFrame, columns: Sequence[Column], average: Average | None) -> list[Cell]:
    """One cell per column for one seed."""
    given = rows[rows["value"].notna()]  # at most one row for a column
    found = {
        (task, metric): Cell(value, None if pd.isna(stderr) else stderr)
        for task, metric, value, stderr in given[["task", "metric", "value", "stderr"]].itertuples(index=False)
    }
    if average is not None:
        found[AVERAGE, ""] = Cell(average.value, None if math.isnan(average.stderr) else average.stderr)
    return [found.get((column.task, column.metric), Cell()) for column in columns]


def _over_seeds(cells: Sequence[Cell], floor: float | None) -> Cell:
    """Of the seeds that have a value."""
    known = [cell for cell in cells if cell.value is not None]
    values = [cell.value for cell in known if cell.value is not None]
    if not values:
        return Cell()
    stderr = _mean(cell.stderr for cell in known)  # all seeds answer the same items: it does not shrink with them
    mean = fmean(values)
    spread = stdev(values) if len(values) > 1 else None
    return Cell(mean, stderr, spread, at_chance=at_chance(mean, stderr, [floor]))


def _mark_best(rows: list[Row], columns: Sequence[Column]) -> list[Row]:
    """Mark the best value of each column among recipes with the same whole number of bits per weight.

    Controls do not compete, a value at chance is never best, and one recipe alone is not either.
    """
    for bits in {int(row.bits) for row in rows if row.bits is not None}:
        rivals = [i for i, row in enumerate(rows) if row.bits is not None and int(row.bits) == bits and not row.control]
        for j, column in enumerate(columns):
            values = {i: value for i in rivals if (value := rows[i].cells[j].value) is not None}
            if len(values) < 2:
                continue
            choose: Callable[[Iterable[float]], float] = max if column.higher_is_better else min
            best = show(choose(values.values()), column)
            for i, value in values.items():
                if show(value, column) == best and not rows[i].cells[j].at_chance:
                    cells = list(rows[i].cells)
                    cells[j] = replace(cells[j], best=True)
                    rows[i] = replace(rows[i], cells=tuple(cells))
    return rows


def show(value: float | None, column: Column) -> str:
    """A number as the table prints it: percent with one decimal; others with three or four digits: 5469, 0.0123."""
    if value is None:
        return NONE
    if column.percent:
        return f"{100 * value:.1f}"
    if not math.isfinite(value) or abs(value) >= 1e5:
        return f"{value:.1e}"
    if 0 < abs(value) < 0.9995:  # a distance between models of four bits, say
        return f"{value:.1e}" if abs(value) < 1e-3 else f"{value:.{2 - math.floor(math.log10(abs(value)))}f}"
    return f"{value:.{max(0, 2 - max(0, len(str(int(abs(value)))) - 2))}f}"


def _mean(values: Iterable[float | None]) -> float | None:
    """The mean; None if there is nothing or a part is missing."""
    known = list(values)
    present = [value for value in known if value is not None]
    return fmean(present) if present and len(present) == len(known) else None
