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
from typing import Any, TextIO

Command = Callable[[argparse.Namespace], int | None]


def prepare(args: argparse.Namespace) -> None:
    from r2q.prepare import prepare

    prepare(args.config, args.out, args.model)


def calibrate(args: argparse.Namespace) -> None:
    from r2q.models.calibration import calibrate

    calibrate(args.config, args.model, args.out)


def teacher_data(args: argparse.Namespace) -> None:
    from r2q.training.teacher_data import teacher_data

    teacher_data(args.config, args.model, args.out)


def quantize(args: argparse.Namespace) -> None:
    from r2q.models.quantize import quantize

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


def _names(text: str) -> list[str]:
    names = [name for name in text.split(",") if name]
    if not names:
        raise argparse.ArgumentTypeError("needs at least one name")
    return names


def parser() -> argparse.ArgumentParser:
    """Every verb with its arguments and one example."""
    main = argparse.ArgumentParser(
        prog="r2q",
        description="2-bit weight quantization of language models: quantize, evaluate, tabulate, compare.",
        epilog="`snakemake` runs all verbs in order; they are here for a single step by hand. `r2q VERB --help` has an "
        "example. R2Q_TRACEBACK=1 shows the traceback of bad input, too.",
    )
    verbs = main.add_subparsers(metavar="VERB", required=True)

    def verb(name: str, run: Command, about: str, example: str, within: Any = verbs) -> argparse.ArgumentParser:
        added = within.add_parser(
            name,
            help=about,
            description=about[0].upper() + about[1:] + ".",
            epilog=f"example:\n  r2q {example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        added.set_defaults(run=run, name=name)
        added.add_argument("--log", type=Path, metavar="FILE", help="also write progress, and all warnings only, there")
        return added

    def configured(added: argparse.ArgumentParser) -> argparse.ArgumentParser:
        added.add_argument("--config", type=Path, required=True, metavar="YAML", help="the run's config")
        return added

    def unit_verb(name: str, run: Command, about: str, verb_example: str) -> argparse.ArgumentParser:
        added = configured(verb(name, run, about, verb_example))
        added.add_argument("--prepared", type=Path, required=True, metavar="JSON", help="what `prepare` wrote")
        added.add_argument("--model", required=True, metavar="NAME", help="a model of the config")
        added.add_argument("--recipes", required=True, type=_names, metavar="A,B", help="recipes of the config")
        added.add_argument("--out", type=Path, required=True, metavar="DIR", help="results/<run>/<model>")
        return added

    run = "results/embedded"
    one = configured(
        verb(
            "prepare",
            prepare,
            "check every model, recipe and task before any work",
            "prepare --config config/embedded.yaml --out prepared.json",
        )
    )
    one.add_argument("--out", type=Path, required=True, metavar="JSON", help="where the findings go")
    one.add_argument("--model", metavar="NAME", help="only this model of the config, and no tasks")
    one = configured(
        verb(
            "calibrate",
            calibrate,
            "cut the windows of text that some methods look at while they quantize",
            f"calibrate --config {run}/config.yaml --model mini-llama \\\n"
            f"    --out {run}/mini-llama/calibration.safetensors",
        )
    )
    one.add_argument("--model", required=True, metavar="NAME", help="a model of the config")
    one.add_argument("--out", type=Path, required=True, metavar="FILE", help="where the tokens go (.safetensors)")
    one = configured(
        verb(
            "teacher-data",
            teacher_data,
            "make the rows that some recipes train on: the full-precision model's own text, or yours",
            f"teacher-data --config {run}/config.yaml --model mini-llama \\\n"
            f"    --out {run}/mini-llama/training_data.safetensors",
        )
    )
    one.add_argument("--model", required=True, metavar="NAME", help="a model of the config")
    one.add_argument("--out", type=Path, required=True, metavar="FILE", help="where the rows go (.safetensors)")
    unit = f"--config {run}/config.yaml --prepared {run}/mini-llama/prepared.json --model mini-llama"
    one = unit_verb(
        "quantize",
        quantize,
        "write one packed checkpoint and report per recipe and seed",
        f"quantize {unit} \\\n    --recipes rtn-g64,r2q-g64 --out {run}/mini-llama",
    )
    one.add_argument("--calibration", type=Path, metavar="FILE", help="what `calibrate` wrote")
    one.add_argument("--training", type=Path, metavar="FILE", help="what `teacher-data` wrote")
    unit_verb(
        "evaluate",
        evaluate,
        "score packed checkpoints, reading nothing but their folders",
        f"evaluate {unit} \\\n    --recipes rtn-g64,r2q-g64 --out {run}/mini-llama",
    )
    one = configured(
        verb(
            "collect",
            collect,
            "gather a run into scores.csv, layers.csv and provenance.json",
            f"collect --config {run}/config.yaml --results {run}",
        )
    )
    one.add_argument("--results", type=Path, required=True, metavar="DIR", help="results/<run>")
    one = verb(
        "table",
        table,
        "write the main table as CSV, Markdown and LaTeX",
        f"table --scores {run}/scores.csv --out {run}/tables --show",
    )
    one.add_argument("--scores", type=Path, required=True, metavar="CSV", help="what `collect` wrote")
    one.add_argument("--out", type=Path, required=True, metavar="DIR", help="where main.csv, main.md, main.tex go")
    one.add_argument("--show", action="store_true", help="also print the table")

    figure = verbs.add_parser("figure", help="draw a figure as PNG and SVG, with its data as CSV")
    figures = figure.add_subparsers(metavar="FIGURE", required=True)
    one = configured(
        verb(
            "lattice",
            lattice,
            "where each weight of one group maps, recipe beside recipe",
            f"figure lattice --config {run}/config.yaml --results {run} --out figures/embedded/lattice",
            figures,
        )
    )
    one.add_argument("--results", type=Path, required=True, metavar="DIR", help="results/<run>")
    one.add_argument("--out", type=Path, required=True, metavar="STEM", help="path without .png, .svg, .csv")
    one = verb(
        "weight_error",
        weight_error,
        "relative weight error by layer and recipe",
        f"figure weight_error --layers {run}/layers.csv --out figures/embedded/weight_error",
        figures,
    )
    one.add_argument("--layers", type=Path, required=True, metavar="CSV", help="what `collect` wrote")
    one.add_argument("--out", type=Path, required=True, metavar="STEM", help="path without .png, .svg, .csv")
    one = verb(
        "training",
        training,
        "gradient norm and loss by training step",
        f"figure training --steps {run}/training.csv --out figures/embedded/training",
        figures,
    )
    one.add_argument("--steps", type=Path, required=True, metavar="CSV", help="what `collect-training` wrote")
    one.add_argument("--out", type=Path, required=True, metavar="STEM", help="path without .png, .svg, .csv")
    one = verb(
        "drift",
        drift,
        "distance to full precision before and after training",
        f"figure drift --layers {run}/drift.csv --out figures/embedded/drift",
        figures,
    )
    one.add_argument("--layers", type=Path, required=True, metavar="CSV", help="what `collect-training` wrote")
    one.add_argument("--out", type=Path, required=True, metavar="STEM", help="path without .png, .svg, .csv")

    one = configured(
        verb(
            "collect-training",
            collect_training,
            "gather the records of all training into training.csv and drift.csv",
            f"collect-training --config {run}/config.yaml --results {run}",
        )
    )
    one.add_argument("--results", type=Path, required=True, metavar="DIR", help="results/<run>")
    one = verb(
        "claims",
        claims,
        "hold the paper's claims about training against a run's numbers",
        f"claims --steps {run}/training.csv --drift {run}/drift.csv \\\n"
        f"    --scores {run}/scores.csv --out {run}/tables/claims",
    )
    one.add_argument("--steps", type=Path, required=True, metavar="CSV", help="training.csv of the run")
    one.add_argument("--drift", type=Path, required=True, metavar="CSV", help="drift.csv of the run")
    one.add_argument("--scores", type=Path, required=True, metavar="CSV", help="scores.csv of the run")
    one.add_argument("--out", type=Path, required=True, metavar="STEM", help="path without .csv, .md")

    one = verb(
        "compare",
        compare,
        "paired differences between two runs",
        "compare results/reference/scores.csv results/embedded/scores.csv --out compare.csv",
    )
    one.add_argument("a", type=Path, metavar="A", help="a scores.csv")
    one.add_argument("b", type=Path, metavar="B", help="another scores.csv")
    one.add_argument("--out", type=Path, metavar="CSV", help="also write the differences there")
    one = verb(
        "schema",
        schema,
        "print the JSON schema of the config",
        "schema > workflow/schemas/config.schema.json",
    )
    one.add_argument("--check", action="store_true", help="print nothing; exit with 1 when the schema file is stale")
    verbs.add_parser("lm-eval", add_help=False, help="lm-eval's own command line, which can then read packed folders")
    return main


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
        status = args.run(args) or 0
        if args.log:
            what = " ".join(filter(None, [args.name, getattr(args, "model", None)]))
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
