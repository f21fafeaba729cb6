"""What differs between two runs, or between two recipes of one run, and whether it is more than noise.

Two numbers are compared only where they measure the same thing: the same model, task, metric, task version, worked
examples and number of items. Everything else is listed as not comparable, with the reason. Proportions are tested
exactly, item by item where the runs kept what each item gave (`r2q.report.items`); p values are corrected for the
number of comparisons (Holm). A mean over seeds is compared by Student's t over the seeds.
"""

from collections.abc import Sequence
from pathlib import Path

from r2q.kept import write_atomic
from r2q.report.compare.formats import WRITERS
from r2q.report.compare.numbers import APART, BETTER, WORSE, differences, of_recipe, side_of

SAME, DIFFERS, NOT_COMPARABLE = 0, 1, 3  # exit status, as `diff` has it; 2 is an error


def compare(
    a: str | Path,  # a scores.csv, or the folder of a run
    b: str | Path | None = None,  # another one
    # with `a` alone: two recipes of that run; means over their common seeds, else the first of each
    recipes: Sequence[str] = (),
    format: str = "text",  # text shows what differs; the others have every comparison
    out: str | Path | None = None,  # a file in place of the terminal
    fail_on_regression: bool = False,  # only a significantly worse `b` counts in the exit status
) -> int:
    """Compare two runs, or with `recipes` two recipes of one run; print the result or write it to `out`.

    Returns:
        0 where nothing differs by more than noise, 1 where something does, 3 where nothing does but some numbers could
        not be compared.

    Raises:
        FileNotFoundError, ValueError: a file is missing or damaged, a recipe is not in the run, or the two have not a
            single number in common.
    """
    if (b is None) == (not recipes):
        raise ValueError("compare takes two runs, or one run and two recipes")
    if b is None:
        if len(recipes) != 2:
            raise ValueError(f"compare takes two recipes of a run, not {len(recipes)}")
        run = side_of(a)
        first, second = (of_recipe(run, name) for name in recipes)
    else:
        first, second = side_of(a), side_of(b)
    rows = differences(first, second, over_seeds=b is None)
    text = WRITERS[format](rows, first, second)
    if out is None:
        print(text, end="" if text.endswith("\n") else "\n")
    else:
        write_atomic(out, text)
    verdicts = {row.verdict for row in rows}
    if WORSE in verdicts or (BETTER in verdicts and not fail_on_regression):
        return DIFFERS
    return NOT_COMPARABLE if APART in verdicts else SAME
