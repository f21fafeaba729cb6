"""draw a figure of a run as PNG and SVG, with its data as CSV

r2q figure frontier-bytes --results results/embedded --out figures/embedded/frontier-bytes
"""

from typing import Annotated

from r2q.verbs import Results, Stem


def figure(name: Annotated[str, "FIGURE", "such as frontier-bytes or drift"], /, results: Results, out: Stem) -> None:
    from r2q.report.figures import figure

    figure(name, results, out)
