"""A table as data, and its three files: CSV for programs, Markdown for reading, LaTeX (booktabs) for papers."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from r2q.kept import write_atomic
from r2q.records import write_csv

_ESCAPES = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "°": r"$^\circ$", "±": r"$\pm$", "–": "--", "…": r"\dots{}",
    "×": r"$\times$", "↑": r"$\uparrow$", "↓": r"$\downarrow$", "²": r"$^2$", "Σ": r"$\Sigma$", "α": r"$\alpha$",
    "−": "$-$", "ŵ": r"$\hat{w}$",
    "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}",
}  # fmt: skip
NONE = "–"
NARROW, WIDE = 46, 118  # letters of footnotesize that fit into a column of a two-column page, and across the page
GAP = 2  # letters between two columns
HEADING = 9  # letters of a line of a column's name


@dataclass(frozen=True)
class Entry:
    """One field: what is printed, and the number behind it."""

    text: str  # as printed
    spread: str = ""  # what follows ±, without it
    value: float | None = None  # the number, None for a text
    bold: bool = False  # best among its rivals
    grey: bool = False  # no better than chance
    error: float | None = None  # the number behind the spread, in the unit of `value`


@dataclass(frozen=True)
class Sheet:
    """A table."""

    name: str  # of its files
    title: str
    head: list[str]  # a name per column
    body: list[list[Entry | str]]  # rows
    notes: list[str] = field(default_factory=list)  # what its columns and marks mean, a sentence each
    left: tuple[int, ...] = (0,)  # columns of texts


def write(sheet: Sheet, folder: str | Path) -> None:
    """Write `<name>.csv`, `<name>.md` and `<name>.tex`."""
    folder = Path(folder)
    columns, rows = csv_rows(sheet)
    write_csv(folder / f"{sheet.name}.csv", columns, rows)
    write_atomic(folder / f"{sheet.name}.md", markdown(sheet))
    write_atomic(folder / f"{sheet.name}.tex", latex(sheet))


def csv_rows(sheet: Sheet) -> tuple[list[str], list[dict[str, object]]]:
    """Numbers and their spreads as they are, nothing for what there is not, marks as a word."""
    columns: list[str] = []
    rows: list[dict[str, object]] = [{} for _ in sheet.body]
    for j, name in enumerate(sheet.head):
        entries = [_entry(row[j]) for row in sheet.body]
        columns.append(name)
        for row, entry in zip(rows, entries, strict=True):
            row[name] = (None if entry.text == NONE else entry.text) if entry.value is None else entry.value
        for part, mark in (("error", "spread"), ("bold", "bold"), ("grey", "grey")):
            known = [None if (value := getattr(entry, part)) is False else value for entry in entries]
            if any(value is not None for value in known):
                columns.append(f"{name} {mark}")
                for row, value in zip(rows, known, strict=True):
                    row[f"{name} {mark}"] = value
    return columns, rows


def markdown(sheet: Sheet) -> str:
    """The table with its title, and its notes as a list."""
    body = [[_markdown_entry(_entry(part)) for part in row] for row in sheet.body]
    lines = [
        f"# {sheet.title}",
        "",
        *grid(sheet.head, body, sheet.left),
        "",
        *(f"- {_untagged(note)}" for note in sheet.notes),
    ]
    return "\n".join(lines) + "\n"


def _markdown_entry(entry: Entry) -> str:
    text = f"**{entry.text}**" if entry.bold else f"{entry.text}°" if entry.grey else entry.text
    return f"{text} ±{entry.spread}" if entry.spread else text


def _entry(part: Entry | str) -> Entry:
    return part if isinstance(part, Entry) else Entry(part)


def _untagged(text: str) -> str:
    """Text of which Markdown takes nothing for a tag of HTML, which it would not show: <class 'int'> in a reason."""
    return text.replace("<", r"\<")


def grid(head: Sequence[str], body: Iterable[Sequence[str]], left: Sequence[int] = (0,)) -> list[str]:
    """A Markdown table whose source is aligned too; columns of `left` are left-aligned, and | in a field is /."""
    rows = [[_untagged(field.replace("|", "/")) for field in row] for row in (head, *body)]
    widths = [max(3, *(len(row[i]) for row in rows)) for i in range(len(head))]

    def line(fields: Sequence[str]) -> str:
        padded = [
            field.ljust(width) if i in left else field.rjust(width)
            for i, (field, width) in enumerate(zip(fields, widths, strict=True))
        ]
        return f"| {' | '.join(padded)} |"

    rule = [("-" * width if i in left else "-" * (width - 1) + ":") for i, width in enumerate(widths)]
    return [line(rows[0]), line(rule), *map(line, rows[1:])]


def latex(sheet: Sheet) -> str:
    r"""A `table` (one column of a page) or `table*`, at its natural size; needs `\usepackage{booktabs,xcolor}`.

    A table that is too wide for a page is set in parts, each with the columns of texts; ± stands only where there is
    room for it in a single column.
    """
    fixed = list(sheet.left)
    rest = [j for j in range(len(sheet.head)) if j not in fixed]
    whole = sum(_width(sheet, j, spreads=True) for j in fixed + rest)
    if whole <= NARROW:
        return _latex_part(sheet, fixed + rest, 1, 1, star="", spreads=True)
    start = sum(_width(sheet, j) for j in fixed)
    parts: list[list[int]] = [[]]
    for j in rest:
        if parts[-1] and start + sum(_width(sheet, k) for k in [*parts[-1], j]) > WIDE:
            parts.append([])
        parts[-1].append(j)
    made = (_latex_part(sheet, fixed + part, k, len(parts), "*", False) for k, part in enumerate(parts, 1))
    return "\n".join(made)


def _width(sheet: Sheet, column: int, spreads: bool = False) -> int:
    """Letters that a column needs."""
    entries = [_entry(row[column]) for row in sheet.body]
    longest = max((len(entry.text) + (len(entry.spread) if spreads else 0) for entry in entries), default=0)
    return max([longest, *map(len, _broken(sheet.head[column]))]) + GAP


def _latex_part(sheet: Sheet, columns: list[int], number: int, count: int, star: str, spreads: bool) -> str:
    more = f" ({number} of {count})" if count > 1 else ""
    lines = [
        rf"\begin{{table{star}}}[t]", r"\centering\footnotesize\setlength{\tabcolsep}{3pt}",
        rf"\caption{{{escape(sheet.title + more)}}}", rf"\label{{tab:{sheet.name}{number if count > 1 else ''}}}",
        rf"\begin{{tabular}}{{{''.join('l' if j in sheet.left else 'r' for j in columns)}}}", r"\toprule",
        *_latex_head([sheet.head[j] for j in columns]), r"\midrule",
    ]  # fmt: skip
    for row in sheet.body:
        lines.append(" & ".join(_latex_entry(_entry(row[j]), spreads) for j in columns) + r" \\")
    notes = " ".join(sheet.notes)
    lines += [r"\bottomrule", r"\end{tabular}", rf"\par\smallskip\raggedright\scriptsize {escape(notes)}"]
    return "\n".join([*lines, rf"\end{{table{star}}}", ""])


def _latex_head(names: Sequence[str]) -> list[str]:
    """Long names broken at blanks and underscores into up to three lines, bottom-aligned."""
    lines = [_broken(name) for name in names]
    height = max(map(len, lines))
    padded = [[""] * (height - len(part)) + part for part in lines]
    return [" & ".join(escape(part[i].strip()) for part in padded) + r" \\" for i in range(height)]


def _broken(name: str) -> list[str]:
    """A name in lines of about HEADING letters."""
    lines = [""]
    for word in re.findall(r"[^ _]+[_ ]?", name):
        if lines[-1] and len(lines[-1]) + len(word) > HEADING:
            lines.append("")
        lines[-1] += word
    return lines


def _latex_entry(entry: Entry, spread: bool) -> str:
    text = escape(entry.text)
    text = rf"\textbf{{{text}}}" if entry.bold else text
    text += rf"\,{{\tiny$\pm${escape(entry.spread)}}}" if spread and entry.spread else ""
    return rf"\textcolor{{gray}}{{{text}}}" if entry.grey else text


def escape(text: str) -> str:
    """Plain text as LaTeX; letters outside ASCII that have no command here are escapes as in figures, \\u4efb."""
    named = (letter if letter.isascii() or letter in _ESCAPES else ascii(letter)[1:-1] for letter in text)
    return "".join(_ESCAPES.get(letter, letter) for letter in "".join(named))
