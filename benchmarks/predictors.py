"""What a recipe's KL to full precision goes with, over the recipes of a run: rank correlations, from CSV only.

    python -m benchmarks.predictors results/reference/smollm2 --model smollm2-135m

Candidates are the error of the weights, the share of it that lies beyond the outermost level (clipping), the error of
the layers' outputs on calibration text, and for recipes that train the loss before training. Recipes without training
and trained ones of one frame, granularity and budget are taken apart. A correlation is no proof of a cause.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
from scipy.stats import spearmanr

from r2q.report.run import Run

COLUMNS = ["recipes", "predictor", "n", "spearman", "p"]


def of_recipes(results: Path, model: str) -> pd.DataFrame:
    """A row per recipe, means over seeds: method, granularity, frame with budget, KL and its candidates."""
    run = Run(results)
    scores, layers = (rows[rows["model"] == model] for rows in (run.scores, run.layers))
    layers = layers[layers["relative_error"] > 0]
    size = layers["shape"].str.split("x").map(lambda sides: int(sides[0]) * int(sides[1]))
    power = layers["mse"] / layers["relative_error"] * size
    sums = pd.DataFrame(
        {"recipe": layers["recipe"], "error": layers["mse"] * size, "power": power,
         "clipped": layers["clipped_error"] * power}
    ).groupby("recipe").sum()  # fmt: skip
    named = scores.drop_duplicates("recipe").set_index("recipe")
    kl = scores[(scores["task"] == "fidelity") & (scores["metric"] == "kl")].groupby("recipe")["value"].mean()
    recipes = named[["method", "granularity"]].assign(
        kl=kl,
        weight_error=sums["error"] / sums["power"],
        share_beyond_levels=sums["clipped"] / sums["error"],
        output_error=layers.groupby("recipe")["output_error"].median(),
    )
    if (results / "training.csv").is_file():
        steps = run.steps[run.steps["model"] == model]
        recipes["frame"] = steps.groupby("recipe")["frame"].first()
        recipes["loss_before_training"] = steps[steps["step"] == 0].groupby("recipe")["held_out_loss"].mean()
    return recipes[~named["control"].fillna(False).astype(bool)]


def correlations(recipes: pd.DataFrame) -> Iterator[tuple[str, str, int, float, float]]:
    """Rows of `COLUMNS`, for groups of five recipes or more."""
    trained = recipes["frame"].notna() if "frame" in recipes else pd.Series(False, index=recipes.index)
    groups = [("not trained", recipes[~trained])]
    groups += [(f"{frame}, {g}", rows) for (frame, g), rows in recipes[trained].groupby(["frame", "granularity"])]
    for name, rows in groups:
        for predictor in recipes.columns[recipes.columns.get_loc("kl") + 1 :].drop("frame", errors="ignore"):
            pairs = rows[[predictor, "kl"]].dropna()
            if len(pairs) >= 5:
                result = spearmanr(pairs[predictor], pairs["kl"])
                yield name, predictor, len(pairs), float(result.statistic), float(result.pvalue)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", type=Path)
    parser.add_argument("--model", required=True)
    given = parser.parse_args()
    rows = pd.DataFrame(correlations(of_recipes(given.results, given.model)), columns=COLUMNS)
    print(rows.to_string(index=False, float_format="{:.2g}".format))


if __name__ == "__main__":
    main()
