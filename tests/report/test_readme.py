"""The README's table of results, against the committed numbers that it is of."""

import re

import pytest

from r2q.kept import ROOT
from r2q.report.run import read_scores

STUDY = ROOT / "results" / "reference" / "smollm2" / "scores.csv"
TASKS = ["piqa", "arc_easy", "sciq", "social_iqa"]
RECIPES = {
    "full precision": ["full_precision"],
    "BitDistiller ✕4: alternating R2Q, g64": ["bitdistiller-long-r2q-alternating-g64"],
    "BitDistiller ✕4: round to nearest, g64": ["bitdistiller-long-rtn-g64"],
    "BitDistiller: round to nearest, g32": ["bitdistiller-rtn-g32"],
    "BitDistiller: round to nearest, g64 (3)": ["bitdistiller-rtn-g64"],
    "BitDistiller ✕4: R2Q, g64": ["bitdistiller-long-r2q-g64"],
    "BitDistiller: alternating R2Q, g64 (3)": ["bitdistiller-r2q-alternating-g64"],
    "BitDistiller: round to nearest, channel": ["bitdistiller-rtn-channel"],
    "LLM-QAT's frame: R2Q, g64 / its own rule, g64": ["llm_qat_training-r2q-g64", "llm_qat_training-g64"],
    "BitDistiller: R2Q from GPTQ's weights, g64 (3)": ["bitdistiller-r2q-gptq-g64"],
    "BitDistiller: R2Q, g64 (3)": ["bitdistiller-r2q-g64"],
    "GPTQ on round to nearest with searched ranges, g64": ["gptq-rtn-clip-g64"],
    "GPTQ on alternating R2Q, g64": ["gptq-r2q-alternating-g64"],
    "round to nearest / R2Q, g64, from the weights alone": ["rtn-g64", "r2q-g64"],
    "random codes, g64": ["random_codes-g64"],
}


def rows() -> dict[str, list[str]]:
    """Fields of the README's table of results by their first one."""
    table = (ROOT / "README.md").read_text().partition("| recipe (seeds) |")[2].partition("\n\n")[0]
    fields = [[part.strip(" *") for part in line.strip("|").split("|")] for line in table.splitlines()[2:]]
    return {name: others for name, *others in fields}


def same(shown: str, value: float) -> bool:
    """Whether a number is the value, rounded to the digits that it has: 120, 39.2, 4e6."""
    digits, _, power = shown.partition("e")
    unit = 10.0 ** (int(power or 0) - len(digits.partition(".")[2]))
    return abs(float(shown) - value) <= 0.5001 * unit


def test_every_row_is_looked_at() -> None:
    assert list(rows()) == list(RECIPES)


@pytest.mark.parametrize("name", RECIPES)
def test_a_row_has_the_numbers_of_its_recipes(name: str) -> None:
    scores = read_scores(STUDY)
    bits, kl, choice, perplexity, accuracy = ([*re.findall(r"(?<!±)\b[\d.]+(?:e\d)?", field)] for field in rows()[name])
    errors = re.findall(r"±([\d.]+)", rows()[name][1])
    for i, recipe in enumerate(RECIPES[name]):
        of = scores[scores["recipe"] == recipe]
        seeds = re.findall(r"\((\d)\)$", name) or ["1"]
        assert of["seed"].nunique() == int(seeds[0])
        mean = {metric: part["value"].mean() for metric, part in of[~of["task"].isin(TASKS)].groupby("metric")}
        right = of[of["task"].isin(TASKS) & (of["metric"] == "acc")].groupby("seed")["value"].mean().mean()
        assert same(bits[i], of["bits_per_weight"].iloc[0])
        assert same(kl[i], mean["kl"])
        assert same(choice[i], 100 * mean["top1_agreement"])
        assert same(perplexity[i], mean["token_ppl_2048"])
        assert same(accuracy[i], 100 * right)
        assert all(same(error, of.loc[of["metric"] == "kl", "stderr"].mean()) for error in errors)
