"""hold the paper's claims about training against a run's numbers, for R2Q or for any other quantizer

r2q claims --results results/embedded --out results/embedded/tables/claims-alternating \\
    --subject r2q-alternating --against rtn r2q
"""

from pathlib import Path
from typing import Annotated

from r2q.verbs import Results


def claims(
    results: Results,
    out: Annotated[Path, "STEM", "path without .csv, .md"],
    subject: Annotated[str, "QUANTIZER", "whose claims: a quantizer as the tables call it"] = "r2q",
    against: Annotated[list[str], "QUANTIZER", "the others, the main rival first; all that there are without"] = [],  # noqa: B006
) -> None:
    from r2q.report.claims import claims

    claims(results, out, subject, against)
