"""What a run says while it works and when it is done."""

import io
import logging
import sys

import pandas as pd
import pytest
from snakemake_interface_logger_plugins.common import LogEvent

from r2q.plan import terminal
from r2q.records import Score, columns
from r2q.report.averages import best_of_families


def record(event: LogEvent | None, text: str = "", **more: int) -> logging.LogRecord:
    return logging.makeLogRecord({"msg": text, "event": event, **more})


def test_a_finished_job_is_one_line_with_the_time_left() -> None:
    said: list[str] = []
    times = iter([100.0, 130.0, 220.0, 1000.0])
    progress = terminal.Progress(said.append, lambda: next(times))
    assert not progress.filter(record(LogEvent.PROGRESS, done=1, total=4))
    assert not progress.filter(record(LogEvent.PROGRESS, done=2, total=4))
    assert not progress.filter(record(LogEvent.PROGRESS, done=4, total=4))
    assert said == [
        "1 of 4 jobs done, about 90 s left",  # 30 s for one
        "2 of 4 jobs done, about 2 min left",  # 120 s for two
        "4 of 4 jobs done",
    ]


def test_bookkeeping_is_hidden_and_errors_are_not() -> None:
    progress = terminal.Progress(print)
    for event in (LogEvent.JOB_INFO, LogEvent.JOB_STARTED, LogEvent.JOB_FINISHED):
        assert not progress.filter(record(event))
    assert not progress.filter(record(None, "Select jobs to execute..."))
    for event in (LogEvent.JOB_ERROR, LogEvent.ERROR, LogEvent.RUN_INFO):
        assert progress.filter(record(event))
    assert progress.filter(record(None, "anything else"))


def test_a_terminal_of_few_letters_stops_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="latin-1"))
    terminal.with_any_letter()
    print("kl ↓ 95 ° of köln", flush=True)
    assert written.getvalue().decode("latin-1") == "kl ? 95 ° of köln\n"


@pytest.mark.parametrize(("value", "plain"), [("1", True), ("", False)])
def test_no_color_is_respected(value: str, plain: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    handler = terminal.ColorizingTextHandler()
    handler.nocolor = False
    monkeypatch.setattr(terminal.logger, "handlers", [handler])
    monkeypatch.setenv("NO_COLOR", value)
    terminal.without_colour()
    assert handler.nocolor is plain


def test_of_many_recipes_the_best_of_each_family_is_shown() -> None:
    def rows(count: int) -> pd.DataFrame:
        units = [("full_precision", "", "full_precision", True, 0.9)]
        for i in range(count):
            frame, quantizer = ("", "gptq")[i % 2], ("rtn-clip", "rtn", "r2q", "r2q-refit (x start)")[i % 4]
            units.append((f"recipe{i}", frame, quantizer, False, 0.3 + i / 100))
        blank = dict.fromkeys(columns(Score))
        known = {"model": "m", "seed": 0, "task": "t", "metric": "acc", "n": 8, "stderr": 0.1, "chance": 0.25}
        known |= {"in_table": True, "higher_is_better": True, "status": "ok"}
        names = ("recipe", "frame", "quantizer", "control", "value")
        return pd.DataFrame([blank | known | dict(zip(names, unit, strict=True)) for unit in units])

    assert len(best_of_families(rows(12))) == 13
    lost = rows(25)
    lost.loc[3, ["status", "value"]] = ["failed", None]
    shown = set(best_of_families(lost)["recipe"])
    # families: rtn (i % 4 = 0), gptq rtn (1), r2q (2), gptq r2q (3); the last one of each is best
    assert shown == {"full_precision", "recipe24", "recipe21", "recipe22", "recipe23", "recipe2"}
    assert lost.loc[11, "recipe"] == "recipe10"
    lost.loc[11, "bits"] = 3  # no rival of two bits
    assert set(best_of_families(lost)["recipe"]) == shown | {"recipe10"}
    text = lost.loc[[5]].assign(task="u", metric="ppl", higher_is_better=False, value=None, status="failed")
    rows_of_one = best_of_families(pd.concat([lost, text])).query("recipe == 'recipe4'")
    assert list(rows_of_one["status"]) == ["ok", "failed"]  # its failed text alone had made a failed recipe of it
