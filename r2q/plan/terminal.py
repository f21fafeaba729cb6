"""What a run says on the terminal: one line a finished job with the time left."""

import logging
import os
import sys
import time
from collections.abc import Callable
from functools import partial
from io import TextIOWrapper

from snakemake.logging import ColorizingTextHandler, get_event, logger
from snakemake_interface_logger_plugins.common import LogEvent

from r2q.measure import duration

HIDDEN = {LogEvent.JOB_INFO, LogEvent.JOB_STARTED, LogEvent.JOB_FINISHED}  # jobs say themselves what they do
SELECTING = "Select jobs to execute"


class Progress(logging.Filter):
    """Hides Snakemake's bookkeeping of single jobs and says at each finished one how long the whole run still takes.

    The time left is that of the jobs so far: `clock` (seconds) since the first one, for each, times those to come.
    """

    def __init__(self, say: Callable[[str], None], clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self.say, self.clock, self.start = say, clock, clock()

    def filter(self, record: logging.LogRecord) -> bool:
        event = get_event(record)
        if event in HIDDEN or SELECTING in str(record.msg):
            return False
        if event != LogEvent.PROGRESS:
            return True
        done, total = record.done, record.total  # type: ignore[attr-defined]
        left = (self.clock() - self.start) / max(done, 1) * (total - done)
        self.say(f"{done} of {total} jobs done" + (f", about {duration(left)} left" if done < total else ""))
        return False


def terminals() -> list[ColorizingTextHandler]:
    """Snakemake's own handlers of the terminal; not its log file, which keeps everything."""
    return [handler for handler in logger.handlers if isinstance(handler, ColorizingTextHandler)]


def with_any_letter() -> None:
    """Print what the terminal's encoding lacks, such as the arrows of a table, as question marks, as verbs do."""
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")


def without_colour() -> None:
    """Respect NO_COLOR (no-color.org), which Snakemake does not know."""
    if os.environ.get("NO_COLOR"):
        for handler in terminals():
            handler.nocolor = True


def show_progress() -> None:
    """One line a finished job, from here on; with --verbose nothing is hidden."""
    if logger.level > logging.DEBUG:
        for handler in terminals():
            handler.addFilter(Progress(partial(print, file=handler.stream, flush=True)))
