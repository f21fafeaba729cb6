"""Numbers that others published, beside those of a run: only where both mean the same.

The same is: model (by its id on the hub), method and quantizer, bits, group, task, metric, window, few-shot examples;
every item of the task, every window of the text. The version of the harness may differ: tables name it.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from r2q.records import OK, Published, read_csv, read_drawn
from r2q.report.run import FULL_PRECISION, Run

MODELS = "models.csv"  # ids on the hub of the models that the other files name
WIKITEXT2 = "wikitext:wikitext-2-raw-v1:test"
TOKEN_PPL = "token_ppl"


@dataclass(frozen=True)
class Beside:
    """A number of ours, as the mean over seeds, and a published one of the same definition."""

    ours: Mapping[Any, Any]  # fields of its `Score`
    published: Mapping[Any, Any]  # of its `Published`


def read_published(folder: Path) -> pd.DataFrame:
    """All numbers of a folder, file by file; raises FileNotFoundError where it has none."""
    files = sorted(file for file in folder.glob("*.csv") if file.name != MODELS)
    if not files:
        raise FileNotFoundError(f"no published numbers in {folder}")
    return pd.concat([read_csv(file, Published) for file in files], ignore_index=True)


def beside(run: Run) -> list[Beside]:
    """Every pair of numbers, in the order of the scores."""
    numbers = read_published(run.published)
    hubs = read_drawn(run.published / MODELS, ["model", "hub"]).groupby("model")["hub"].agg(list).to_dict()
    of_model = {  # the numbers of its model, by provenance hash
        digest: numbers[numbers["model"].isin(models)]
        for digest, entry in run.provenance.items()
        if (config := entry.get("config"))
        and (models := [model for model, ids in hubs.items() if _is(config["model"]["path"], ids)])
    }
    scores = run.scores[(run.scores["status"] == OK) & run.scores["value"].notna()]
    scores = scores[scores["provenance"].isin(of_model)]
    pairs = []
    for _, rows in scores.groupby(["model", "recipe", "task", "metric"], sort=False):
        ours = rows.iloc[0].to_dict() | {"value": float(rows["value"].mean()), "stderr": rows["stderr"].mean()}
        definition = _definition(ours, run.provenance[ours["provenance"]]["config"])
        if definition is None:
            continue
        same = of_model[ours["provenance"]]
        for column, value in definition.items():
            same = same[same[column].isna() if value is None else same[column].eq(value).fillna(False)]
        pairs += [Beside(ours, published) for published in same.to_dict("records")]
    return pairs


def _definition(ours: Mapping[Any, Any], record: dict[str, Any]) -> dict[str, Any] | None:
    """The columns of a published number that mean what a score does; None where the score is of a part, or our own."""
    task, full = ours["task"], ours["method"] == FULL_PRECISION
    definition = {"method": ours["method"], "quantizer": ours["quantizer"], "group": ours["granularity"]}
    definition |= {} if full else {"bits": record["recipe"]["bits"]}
    if (text := record["perplexity"].get(task)) is not None:
        here = text["path"].lower().endswith(WIKITEXT2) or (":" not in text["path"] and task == "wikitext2")
        if not here or text["windows"] is not None or text["separator"] != "\n\n":
            return None
        return definition | {"task": "wikitext2", "metric": TOKEN_PPL, "window": text["window"]}
    if (asked := record["tasks"].get(task)) is None or asked["items"] is not None:
        return None
    shots = ours["num_fewshot"]
    return definition | {"task": task, "metric": ours["metric"], "num_fewshot": None if pd.isna(shots) else int(shots)}


def _is(path: str, ids: list[str]) -> bool:
    """Whether a model's path is one of these ids of the hub, or a folder that is called like one."""
    named = path.rstrip("/").lower()
    if path.count("/") == 1 and not path.startswith((".", "/", "~")):
        return named in [id.lower() for id in ids]
    return Path(named).name in [id.lower().split("/")[-1] for id in ids]


def disagreeing(pairs: list[Beside]) -> Iterator[tuple[Beside, list[Beside]]]:
    """Numbers of full precision that are within the tolerance of no published one: the first pair, and all of them."""
    groups: dict[tuple[str, ...], list[Beside]] = {}
    for pair in pairs:
        groups.setdefault(tuple(pair.ours[part] for part in ("model", "recipe", "task", "metric")), []).append(pair)
    for group in groups.values():
        if not any(agrees(pair) for pair in group):
            yield group[0], group


def of_full_precision(run: Run) -> list[Beside]:
    """The pairs of full precision that have a tolerance."""
    pairs = [pair for pair in beside(run) if pair.ours["method"] == FULL_PRECISION]
    return [p for p in pairs if not pd.isna(p.published["tolerance"]) and not pd.isna(p.published["value"])]


def agrees(pair: Beside) -> bool:
    """Whether our number is within the tolerance of the published one."""
    return bool(abs(pair.ours["value"] - pair.published["value"]) <= pair.published["tolerance"])
