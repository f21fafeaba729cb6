"""How numbers of the main table are printed, and the table as plain text for the terminal."""

import re
from collections.abc import Callable, Sequence

from r2q.failures import one_line
from r2q.measure import MIB
from r2q.report.tables.sheet import NONE
from r2q.report.tables.summary import Cell, Column, Row, Table, show

CHANCE_MARK = "°"
TERMINAL_REASON = 78  # characters of a failure in the terminal
PERPLEXITIES = (  # pattern of a metric's name, what it is
    (r"word_perplexity", "word_perplexity is per whitespace-separated word of whole documents"),
    (r"byte_perplexity", "byte_perplexity is per byte of whole documents"),
    (r"token_ppl_\d+", "token_ppl_N is per token of the joined text in windows of N tokens"),
)
MARKS = [
    "Bold: best among recipes with the same whole number of bits a weight (2.00 to 2.99, and so on); controls do not "
    "compete, and no value at chance is best.",
    f"Grey ({CHANCE_MARK}): at most one standard error above chance or above the majority rate, whichever is higher.",
    "±: standard error over the items; standard deviation over the seeds where a row names several.",
]
ROWS = [
    "chance: expected score of a random answer; majority: score of always giving the most frequent right answer "
    "(free answers have none; its average takes their chance).",
    "bits: of the quantized layers, scales included; file: all of model.safetensors, embeddings included.",
]


def terminal(table: Table) -> str:
    """A compact form without spreads, at most about 130 columns for ten scores."""
    unit, size = size_unit(table)
    heads = [["recipe"], ["bits/", "weight"], ["file", unit], *map(_wrapped_heading, table.columns)]
    widths = [max(len(label(row)) for block in table.blocks for row in block.rows), 6, 6]
    for i, column in enumerate(table.columns):
        shown = [show(row.cells[i].value, column) for block in table.blocks for row in block.rows]
        widths.append(max(map(len, [*shown, *heads[i + 3]])))
    height = max(map(len, heads))
    tops = [[""] * (height - len(head)) + head for head in heads]

    def line(fields: Sequence[str], marks: Sequence[str]) -> str:
        first = fields[0].ljust(widths[0])
        rest = (field.rjust(width) + mark for field, width, mark in zip(fields[1:], widths[1:], marks, strict=False))
        return " ".join([first, *rest]).rstrip()

    blank = [" "] * (len(widths) - 1)
    lines = [line([top[i] for top in tops], blank) for i in range(height)]
    rule = "─" * (sum(widths) + 2 * (len(widths) - 1))
    for block in table.blocks:
        lines += [rule, f"{block.model} ({block.family})"]
        for row in block.rows:
            if row.failed:
                reason = one_line(row.reasons.replace("|", "/"))
                cut = reason if len(reason) <= TERMINAL_REASON else reason[: TERMINAL_REASON - 1] + "…"
                lines.append(line([label(row), show_bits(row), size(row)], blank) + f"  {cut}")
                continue
            marks = ["*" if cell.best else CHANCE_MARK if cell.at_chance else " " for cell in row.cells]
            shown = [show(cell.value, column) for column, cell in zip(table.columns, row.cells, strict=True)]
            lines.append(line([label(row), show_bits(row), size(row), *shown], [" ", " ", *marks]))
    lines += [rule, f"* best of the same whole bits/weight   {CHANCE_MARK} at most one stderr above chance or majority"]
    return "\n".join(lines) + "\n"


def legend(table: Table) -> list[str]:
    """What the marks and columns mean, a sentence each."""
    percent = [column for column in table.columns if column.percent and column.metric]
    lines = [*MARKS, *ROWS]
    if percent:
        columns = f" average: mean of {', '.join(column.task for column in percent)}." if len(percent) > 1 else ""
        lines.append(f"Accuracies are in percent.{columns}")
    metrics = [column.metric.partition("/")[0] for column in table.columns]
    lines += [f"{text}." for pattern, text in PERPLEXITIES if any(re.fullmatch(pattern, name) for name in metrics)]
    counts = [(column.name, column.n) for column in table.columns if column.n]
    shown = [f"{name} {low}" if low == high else f"{name} {low}-{high}" for name, (low, high) in counts]
    return [*lines, *([f"Items: {', '.join(shown)}."] if shown else [])]


def size_unit(table: Table) -> tuple[str, Callable[[Row], str]]:
    """One unit for all files of the table, and the function that writes a row's file size in it."""
    sizes = [row.file_bytes for block in table.blocks for row in block.rows if row.file_bytes is not None]
    largest = max(sizes, default=0.0)
    unit, divisor, places = ("KiB", 1024, 1) if largest < MIB else ("MiB", MIB, 2 if largest < 100 * MIB else 0)
    return unit, lambda row: NONE if row.file_bytes is None else f"{row.file_bytes / divisor:.{places}f}"


def arrow(column: Column) -> str:
    return "↑" if column.higher_is_better else "↓"


def label(row: Row) -> str:
    return f"{row.recipe} ({row.seeds} seeds)" if any(cell.sd is not None for cell in row.cells) else row.recipe


def show_bits(row: Row) -> str:
    return NONE if row.bits is None else f"{row.bits:.2f}"


def show_spread(cell: Cell, column: Column) -> str:
    """The spread with as many decimals as its value; "" if there is none."""
    if cell.value is None or cell.spread is None:
        return ""
    shown = show(cell.value, column)
    if "e" in shown or not shown[-1].isdigit():
        return f"{cell.spread:.1e}"
    return f"{cell.spread * (100 if column.percent else 1):.{len(shown.partition('.')[2])}f}"


def _wrapped_heading(column: Column) -> list[str]:
    """Task, then metric, broken after underscores into narrow lines."""
    lines: list[str] = []
    words = [re.findall(r"[^_/-]+[_/-]*", word) for word in (column.task, column.metric) if word]
    width = max(7, *(len(piece) for pieces in words for piece in pieces))
    for pieces in words:
        lines.append("")
        for piece in pieces:
            if len(lines[-1]) + len(piece) > width:
                lines.append("")
            lines[-1] += piece
    if not column.metric:
        return lines
    if len(lines[-1]) + 2 > width:
        return [*lines, arrow(column)]
    return [*lines[:-1], f"{lines[-1]} {arrow(column)}"]
