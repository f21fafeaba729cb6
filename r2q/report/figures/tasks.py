"""Every recipe on every task: how much of the way from chance to full precision is left."""

import math

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from r2q.report.averages import accuracies
from r2q.report.figures.labels import OF_A_ROW, OF_A_TITLE, broken, lines_of, written
from r2q.report.figures.style import SMALLEST, WIDTH
from r2q.report.run import FULL_PRECISION, Run
from r2q.report.statistics import Z

CAPTION = (
    "Share of the way from chance to full precision, in percent: 100 is full precision, 0 or less is no better than "
    "guessing. In brackets after a task: chance and full precision; n: items. All: of the sums over the tasks, so "
    "that one with little way to go counts little; recipes in its order. Tasks at which full precision itself is not "
    "clearly above chance are left out."
)
COLUMNS = ["model", "recipe", "task", "n", "value", "chance", "full", "share", "seeds"]
ALL = "all"
ROW, LETTER = 0.105, 0.05  # inches


def data(run: Run, variant: str) -> pd.DataFrame:
    """Means over seeds of the model `variant`; tasks on which full precision is above chance, its 95 % interval too.

    Of a task at which full precision itself guesses, the share would be a ratio of two accidents.
    """
    rows = accuracies(run.scores)
    rows = rows[(rows["model"] == variant) & rows["value"].notna() & rows["chance"].notna()]
    whole = rows[rows["method"] == FULL_PRECISION]
    clear = whole[whole["value"] - Z * whole["stderr"] > whole["chance"]]
    full = clear.groupby("task")["value"].mean()
    means = rows.groupby(["model", "recipe", "task"], sort=False, as_index=False).agg(
        value=("value", "mean"), chance=("chance", "first"), n=("n", "first"), seeds=("seed", "nunique")
    )
    means = means.merge(full.rename("full"), on="task")  # in the order of the recipes; without rows where none is clear
    means["share"] = (means["value"] - means["chance"]) / (means["full"] - means["chance"])
    return means[COLUMNS]


def of_all(frame: pd.DataFrame) -> pd.Series:
    """Each recipe's share over all tasks: points above chance over those of full precision; NaN if it lacks one."""
    points = pd.DataFrame({"recipe": frame["recipe"], "way": frame["value"], "full": frame["full"]})
    points[["way", "full"]] = points[["way", "full"]].sub(frame["chance"], axis=0)
    sums = points.groupby("recipe").sum()
    return (sums["way"] / sums["full"]).where(frame.groupby("recipe")["task"].nunique() == frame["task"].nunique())


def draw(frame: pd.DataFrame) -> Figure:
    """A heat map with its numbers, recipes by their share of the whole way."""
    tasks = list(dict.fromkeys(frame["task"]))
    order = of_all(frame).sort_values(ascending=False, kind="stable")
    table = frame.pivot(index="recipe", columns="task", values="share").reindex(index=order.index, columns=tasks)
    table.insert(0, ALL, order, allow_duplicates=True)
    recipes = [broken(recipe, OF_A_ROW) for recipe in table.index]
    first = frame.drop_duplicates("task").set_index("task")
    ends = [f"({100 * first['chance'][name]:.0f}, {100 * first['full'][name]:.0f})" for name in tasks]
    names = [f"{written(name)} {pair}\nn = {first['n'][name]:.0f}" for name, pair in zip(tasks, ends, strict=True)]
    longest = max(len(line) for name in names for line in name.split("\n"))
    below = 1.3 + LETTER * max(0, longest - 24)  # the title, and the names of the tasks on end
    figure = Figure(figsize=(WIDTH, ROW * lines_of(recipes) * len(table) + below), layout="constrained")
    axes = figure.subplots()
    colours = mpl.colormaps["viridis"]
    axes.imshow(np.clip(table.to_numpy(dtype=float), 0, 1), cmap=colours, vmin=0, vmax=1, aspect="auto")
    for r, values in enumerate(table.to_numpy(dtype=float)):
        for c, value in enumerate(values):
            if not math.isnan(value):
                axes.text(c, r, str(round(100 * value)), ha="center", va="center", fontsize=SMALLEST,
                          color="white" if value < 0.6 else "black")  # fmt: skip
    axes.set_xticks(range(len(table.columns)), [ALL, *names], rotation=90, linespacing=0.95)
    axes.set_yticks(range(len(table)), recipes)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.axvline(0.5, color="white", lw=1.5)
    title = f"{frame['model'].iloc[0]}: % of the way from chance to full precision"
    axes.set_title(broken(title, OF_A_TITLE), loc="right")
    return figure
