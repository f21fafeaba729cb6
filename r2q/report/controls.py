"""The verb `controls`: full precision is held against published numbers before any other row is trusted.

A wrong window, begin-of-text token, prompt or checkpoint moves full precision by more than any tolerance, and every
quantized row with it. A difference stops the run's tables and figures; the units stay as they are.
"""

from pathlib import Path

from r2q.intact import sign
from r2q.records import OK, Control, columns, write_csv
from r2q.report.published import FULL_PRECISION, agrees, disagreeing, of_full_precision
from r2q.report.run import Run


def controls(results: str | Path, out: str | Path, published: str | Path | None = None) -> None:
    """Write every number of full precision beside the published ones to `out` (CSV), and their sha256.

    What of full precision failed is said, and stops nothing.

    Raises:
        ValueError: a number is not within the tolerance of any published one; one sentence for each.
    """
    out, run = Path(out), Run(results, published)
    full = run.scores[run.scores["method"] == FULL_PRECISION]
    for row in full[full["status"] != OK].to_dict("records"):
        what = " ".join(filter(None, [row["recipe"], row["task"], row["metric"]]))
        without = f"{row['model']}, {what} {row['status']} ({row['reason']})"
        print(f"controls: {without}: nothing says what the other rows of {row['model']} are worth there", flush=True)
    pairs = of_full_precision(run)
    problems = []
    for pair, group in disagreeing(pairs):
        ours, model = pair.ours, pair.ours["model"]
        known = " or ".join(f"{p.published['value']:.6g} ({p.published['source']})" for p in group)
        problems.append(
            f"{model}, {ours['recipe']}: {ours['task']} {ours['metric']} is {ours['value']:.6g}, published {known}, "
            f"tolerance {pair.published['tolerance']:.3g}: find out why before any row of {model} is trusted"
        )
    if problems:
        raise ValueError("\n".join(problems))
    shown = ("model", "recipe", "task", "metric")
    rows = [
        Control(
            **{name: pair.ours[name] for name in shown},
            ours=pair.ours["value"],
            published=pair.published["value"],
            tolerance=pair.published["tolerance"],
            agrees=agrees(pair),
            source=pair.published["source"],
        )
        for pair in pairs
    ]
    write_csv(out, columns(Control), rows)
    sign(out.with_suffix(".sha256"), [out])
    held = len({(row.model, row.recipe, row.task, row.metric) for row in rows})
    what = f"{held} numbers of full precision are as published" if held else "nothing published about this run's models"
    print(f"controls: {what}", flush=True)
