"""The command line: one verb per rule of the workflow. Paths are arguments, the work is elsewhere.

Bad input prints one sentence to the terminal and exits with 2; anything else is a fault of ours, shows its traceback
and exits with 1. Imports stand inside the verbs: only what a verb needs is loaded.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TextIO

from r2q.arguments import parser


def prepare(args: argparse.Namespace) -> None:
    from r2q.prepare import prepare

    prepare(args.config, args.out, args.model)


def calibrate(args: argparse.Namespace) -> None:
    from r2q.models.calibration import calibrate

    calibrate(args.config, args.model, args.out)


def teacher_data(args: argparse.Namespace) -> None:
    from r2q.training.teacher_data import teacher_data

    teacher_data(args.config, args.prepared, args.model, args.out)


def quantize(args: argparse.Namespace) -> None:
    from r2q.quantize import quantize

    quantize(args.config, args.prepared, args.model, args.recipes, args.out, args.calibration, args.training)


def evaluate(args: argparse.Namespace) -> None:
    from r2q.evaluation.evaluate import evaluate

    evaluate(args.config, args.prepared, args.model, args.recipes, args.out)


def collect(args: argparse.Namespace) -> None:
    from r2q.report.collect import collect

    collect(args.config, args.results)


def table(args: argparse.Namespace) -> None:
    from r2q.report.table import table

    table(args.scores, args.out, args.show)


def lattice(args: argparse.Namespace) -> None:
    from r2q.report.figure import lattice

    lattice(args.config, args.results, args.out)


def weight_error(args: argparse.Namespace) -> None:
    from r2q.report.figure import weight_error

    weight_error(args.layers, args.out)


def collect_training(args: argparse.Namespace) -> None:
    from r2q.report.training import gather_training

    gather_training(args.config, args.results)


def training(args: argparse.Namespace) -> None:
    from r2q.report.figure import training

    training(args.steps, args.out)


def drift(args: argparse.Namespace) -> None:
    from r2q.report.figure import drift

    drift(args.layers, args.out)


def claims(args: argparse.Namespace) -> None:
    from r2q.report.claims import claims

    claims(args.steps, args.drift, args.scores, args.out)


def compare(args: argparse.Namespace) -> None:
    from r2q.report.compare import compare

    compare(args.a, args.b, args.out)


def bench(args: argparse.Namespace) -> None:
    from r2q.bench import bench

    for row in bench(args.folder, args.out, args.batch, args.context, args.device, args.repeats):
        what = f"{row['model']:<7} {row['phase']:<8} batch {row['batch']:>3}"
        print(f"{what}  {row['median_ms']:10.3f} ms  {row['tokens_per_second']:12.1f} tokens/s")


def schema(args: argparse.Namespace) -> int:
    from r2q.schema import schema_path, schema_text

    if not args.check:
        sys.stdout.write(schema_text())
        return 0
    path = schema_path()
    if path.is_file() and path.read_text(encoding="utf-8") == schema_text():
        return 0
    print(f"error: {path} is not what r2q/config.py says; run: python -m r2q schema > {path}", file=sys.stderr)
    return 1


def lm_eval(arguments: list[str]) -> None:
    """lm-eval's own command line; `import r2q` has registered the plug-in by the time that transformers is loaded."""
    from lm_eval.__main__ import cli_evaluate

    sys.argv = ["lm-eval", *arguments]
    cli_evaluate()


VERBS: dict[str, Callable[[argparse.Namespace], int | None]] = {
    "prepare": prepare,
    "calibrate": calibrate,
    "teacher-data": teacher_data,
    "quantize": quantize,
    "evaluate": evaluate,
    "collect": collect,
    "table": table,
    "figure lattice": lattice,
    "figure weight_error": weight_error,
    "figure training": training,
    "figure drift": drift,
    "collect-training": collect_training,
    "claims": claims,
    "compare": compare,
    "bench": bench,
    "schema": schema,
}


class _Tee:
    """Standard output that also goes to the log, line by line."""

    def __init__(self, *streams: TextIO) -> None:
        self.streams = streams

    def write(self, text: str) -> int:
        for stream in self.streams:
            stream.write(text)
            stream.flush()
        return len(text)

    def flush(self) -> None:
        for stream in self.streams:
            stream.flush()

    def isatty(self) -> bool:
        return False


def _log_to(path: Path) -> TextIO:
    """Send stderr to the log, stdout to both; returns the terminal's stderr, for the last word."""
    path.parent.mkdir(parents=True, exist_ok=True)
    log = path.open("w", encoding="utf-8", buffering=1)
    terminal = os.fdopen(os.dup(2), "w", buffering=1)
    os.dup2(log.fileno(), 2)  # also for what C libraries and child processes say
    sys.stdout = _Tee(sys.stdout, log)
    return terminal


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; returns the exit status."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given[:1] == ["lm-eval"]:
        lm_eval(given[1:])
        return 0
    args = parser().parse_args(given)
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))  # a method of your own, named with dots, may stand in the working folder
    terminal = _log_to(args.log) if args.log else None
    start = time.perf_counter()
    try:
        status = VERBS[args.verb](args) or 0
        if args.log:
            what = " ".join(filter(None, [args.verb, getattr(args, "model", None)]))
            print(f"{what}: done in {time.perf_counter() - start:.1f} s, imports included")
        return status
    except (ValueError, FileNotFoundError) as error:
        if args.log or os.environ.get("R2Q_TRACEBACK"):
            traceback.print_exc()
        _say("".join(f"error: {line}\n" for line in str(error).splitlines()) or f"error: {error!r}\n", terminal)
        return 2
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # the reader has left, as `head` does
        return 1
    except KeyboardInterrupt:
        _say("interrupted\n", terminal)
        return 130
    except Exception as error:
        traceback.print_exc()
        if terminal is not None:
            _say(f"error: {type(error).__name__}: {error}\n  traceback in {args.log}\n", terminal)
        return 1


def _say(text: str, terminal: TextIO | None) -> None:
    """To the log, if there is one, and to the terminal."""
    for stream in {sys.stderr, terminal or sys.stderr}:
        stream.write(text)
        stream.flush()
