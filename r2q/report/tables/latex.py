r"""The main table as LaTeX: one `table` per model, all in one file to `\input`."""

from __future__ import annotations

from collections.abc import Callable

from r2q.report.tables.render import AVERAGE, CHANCE_MARK, label, legend, show_bits, show_spread, size_unit
from r2q.report.tables.summary import Block, Cell, Column, Row, Table, show

REASON = 98  # characters of a failure
_ESCAPES = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "°": r"$^\circ$", "±": r"$\pm$", "–": "--", "…": r"\dots{}",
    "×": r"$\times$",
}  # fmt: skip


def latex(table: Table) -> str:
    r"""Tables that need `\usepackage{booktabs,graphicx,xcolor}`; values at chance are grey."""
    unit, size = size_unit(table)
    lines = [r"% needs \usepackage{booktabs,graphicx,xcolor}"]
    for block in table.blocks:
        lines += _table(table, block, unit, size)
    return "\n".join(lines) + "\n"


def _table(table: Table, block: Block, unit: str, size: Callable[[Row], str]) -> list[str]:
    count = len(table.columns)
    lines = [
        r"\begin{table}[t]", r"\centering",
        rf"\caption{{{escape(f'{block.model} ({block.family}), run {table.run}.')}}}",
        rf"\label{{tab:{block.model}}}", r"\resizebox{\linewidth}{!}{%", rf"\begin{{tabular}}{{lrr{'r' * count}}}",
        r"\toprule",
        " & ".join(["", "bits/", "file", *(escape(column.task) for column in table.columns)]) + r" \\",
        " & ".join(["recipe", "weight", f"({unit})", *map(_metric, table.columns)]) + r" \\",
        r"\midrule",
    ]  # fmt: skip
    for row in block.rows:
        start = [escape(label(row)), escape(show_bits(row)), escape(size(row))]
        if row.failed:
            reason = " ".join(row.reasons.split())
            reason = reason if len(reason) <= REASON else reason[: REASON - 1] + "…"
            cells = [rf"\multicolumn{{{count}}}{{l}}{{{escape(reason)}}}"]
        else:
            cells = [_cell(cell, column) for column, cell in zip(table.columns, row.cells, strict=True)]
        lines.append(" & ".join([*start, *cells]) + r" \\")
        if row.recipe == "majority":
            lines.append(r"\midrule")
    notes = [line for line in legend(table, r"Bold", "±") if not line.startswith(CHANCE_MARK)]
    chance = "Grey: at most one standard error above chance or above the majority rate, whichever is higher."
    lines += [r"\bottomrule", r"\end{tabular}}", r"\par\smallskip\raggedright\footnotesize"]
    return [*lines, *map(escape, [chance, *notes]), r"\end{table}", ""]


def _metric(column: Column) -> str:
    if column.task == AVERAGE:
        return ""
    return escape(column.metric) + (r" $\uparrow$" if column.higher_is_better else r" $\downarrow$")


def _cell(cell: Cell, column: Column) -> str:
    text = escape(show(cell.value, column))
    text = rf"\textbf{{{text}}}" if cell.best else text
    spread = show_spread(cell, column)
    text += rf"\,{{\scriptsize$\pm${spread}}}" if spread else ""
    return rf"\textcolor{{gray}}{{{text}}}" if cell.at_chance else text


def escape(text: str) -> str:
    """Plain text as LaTeX; letters outside ASCII that have no command here become a question mark."""
    return "".join(_ESCAPES.get(letter, letter if letter.isascii() else "?") for letter in text)
