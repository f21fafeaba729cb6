"""The committed study without its drift.csv: which of its claims its other files give again, as its README says."""

import numpy as np
import pandas as pd

from r2q.kept import ROOT
from r2q.records import read_drawn
from r2q.report.claims import COLUMNS, SUBJECT, judge
from r2q.report.run import Run

STUDY = ROOT / "results" / "reference" / "smollm2"
MOVED = "smaller drift"


def test_all_claims_but_that_of_drift_come_out_of_the_committed_files() -> None:
    run, committed = Run(STUDY), read_drawn(STUDY / "tables" / "claims.csv", COLUMNS)
    layers = run.layers[run.layers["recipe"].isin(set(run.steps["recipe"]))]
    weights = [np.prod([float(side) for side in shape.split("x")]) for shape in layers["shape"]]
    drift = layers.assign(weights=weights, quantized_after=layers["mse"], latent_moved=np.nan)
    again = pd.DataFrame(judge(run.steps, drift, run.scores, SUBJECT, list(dict.fromkeys(committed["other"]))))
    again, committed = (rows[rows["claim"] != MOVED].reset_index(drop=True) for rows in (again, committed))
    texts = ["claim", "frame", "granularity", "other", "pairing", "model", "n", "over", "verdict"]
    assert again[texts].to_dict("records") == committed[texts].to_dict("records")
    for number in ("difference", "low", "high", "detectable"):
        np.testing.assert_allclose(again[number].astype(float), committed[number].astype(float), rtol=1e-5)


def test_the_mean_of_the_claim_of_drift_comes_out_of_the_figure() -> None:
    """Where each side has as many seeds: the figure has means over them."""
    run, committed = Run(STUDY), read_drawn(STUDY / "tables" / "claims.csv", COLUMNS)
    layers = run.layers[run.layers["recipe"] == "rtn-g64"]
    weights = [np.prod([float(side) for side in shape.split("x")]) for shape in layers["shape"]]
    power = (layers["mse"] * weights / layers["relative_error"]).groupby(layers["block"]).sum()  # Σw² of a block
    moved = read_drawn(ROOT / "figures" / "reference" / "smollm2" / "drift.csv", ["block", "after"])
    moved = moved[moved["measure"] == "moved"]
    moved["way"] = moved["after"] * moved["block"].map(power)
    named = moved.groupby(["frame", "granularity", "quantizer"])
    way, seeds = named["way"].sum(), named["seeds"].first()
    compared = 0
    for row in committed[committed["claim"] == MOVED].to_dict("records"):
        one, other = ((row["frame"], row["granularity"], row[side]) for side in ("quantizer", "other"))
        if seeds[one] == seeds[other]:
            assert abs(way[one] / way[other] / row["difference"] - 1) < 1e-3
            compared += 1
    assert compared > 6
