"""What can be typed: every verb with its arguments and one example."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any


def _names(text: str) -> list[str]:
    names = [name for name in text.split(",") if name]
    if not names:
        raise argparse.ArgumentTypeError("needs at least one name")
    return names


def _numbers(text: str) -> tuple[int, ...]:
    if not all(part.isdecimal() for part in text.split(",")):
        raise argparse.ArgumentTypeError(f"{text}: whole numbers are needed, with commas between them")
    return tuple(map(int, text.split(",")))


def parser() -> argparse.ArgumentParser:
    """Every verb with its arguments and one example."""
    main = argparse.ArgumentParser(
        prog="r2q",
        description="2-bit weight quantization of language models: quantize, evaluate, tabulate, compare.",
        epilog="`snakemake` runs all verbs in order; they are here for a single step by hand. `r2q VERB --help` has an "
        "example. R2Q_TRACEBACK=1 shows the traceback of bad input, too.",
    )
    verbs = main.add_subparsers(metavar="VERB", required=True)

    def verb(name: str, about: str, example: str, within: Any = verbs) -> argparse.ArgumentParser:
        added = within.add_parser(
            name,
            help=about,
            description=about[0].upper() + about[1:] + ".",
            epilog=f"example:\n  r2q {example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        added.set_defaults(verb=example.split(" --")[0] if within is not verbs else name)
        added.add_argument("--log", type=Path, metavar="FILE", help="also write progress, and all warnings only, there")
        return added

    def configured(added: argparse.ArgumentParser) -> argparse.ArgumentParser:
        added.add_argument("--config", type=Path, required=True, metavar="YAML", help="the run's config")
        return added

    def unit_verb(name: str, about: str, verb_example: str) -> argparse.ArgumentParser:
        added = configured(verb(name, about, verb_example))
        added.add_argument("--prepared", type=Path, required=True, metavar="JSON", help="what `prepare` wrote")
        added.add_argument("--model", required=True, metavar="NAME", help="a model of the config")
        added.add_argument("--recipes", required=True, type=_names, metavar="A,B", help="recipes of the config")
        added.add_argument("--out", type=Path, required=True, metavar="DIR", help="results/<run>/<model>")
        return added

    run = "results/embedded"
    one = configured(
        verb(
            "prepare",
            "check every model, recipe and task before any work",
            "prepare --config config/embedded.yaml --out prepared.json",
        )
    )
    one.add_argument("--out", type=Path, required=True, metavar="JSON", help="where the findings go")
    one.add_argument("--model", metavar="NAME", help="only this model of the config, and no tasks")
    one = configured(
        verb(
            "calibrate",
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
            "make the rows that some recipes train on: the full-precision model's own text, or yours",
            f"teacher-data --config {run}/config.yaml --prepared {run}/mini-llama/prepared.json \\\n"
            f"    --model mini-llama --out {run}/mini-llama/training_data.safetensors",
        )
    )
    one.add_argument("--prepared", type=Path, required=True, metavar="JSON", help="what `prepare` wrote")
    one.add_argument("--model", required=True, metavar="NAME", help="a model of the config")
    one.add_argument("--out", type=Path, required=True, metavar="FILE", help="where the rows go (.safetensors)")
    unit = f"--config {run}/config.yaml --prepared {run}/mini-llama/prepared.json --model mini-llama"
    one = unit_verb(
        "quantize",
        "write one packed checkpoint and report per recipe and seed",
        f"quantize {unit} \\\n    --recipes rtn-g64,r2q-g64 --out {run}/mini-llama",
    )
    one.add_argument("--calibration", type=Path, metavar="FILE", help="what `calibrate` wrote")
    one.add_argument("--training", type=Path, metavar="FILE", help="what `teacher-data` wrote")
    unit_verb(
        "evaluate",
        "score packed checkpoints, reading nothing but their folders",
        f"evaluate {unit} \\\n    --recipes rtn-g64,r2q-g64 --out {run}/mini-llama",
    )
    one = configured(
        verb(
            "collect",
            "gather a run into scores.csv, layers.csv and provenance.json",
            f"collect --config {run}/config.yaml --results {run}",
        )
    )
    one.add_argument("--results", type=Path, required=True, metavar="DIR", help="results/<run>")
    one = verb(
        "table",
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
            "where each weight of one group maps, recipe beside recipe",
            f"figure lattice --config {run}/config.yaml --results {run} --out figures/embedded/lattice",
            figures,
        )
    )
    one.add_argument("--results", type=Path, required=True, metavar="DIR", help="results/<run>")
    one.add_argument("--out", type=Path, required=True, metavar="STEM", help="path without .png, .svg, .csv")
    one = verb(
        "weight_error",
        "relative weight error by layer and recipe",
        f"figure weight_error --layers {run}/layers.csv --out figures/embedded/weight_error",
        figures,
    )
    one.add_argument("--layers", type=Path, required=True, metavar="CSV", help="what `collect` wrote")
    one.add_argument("--out", type=Path, required=True, metavar="STEM", help="path without .png, .svg, .csv")
    one = verb(
        "training",
        "gradient norm and loss by training step",
        f"figure training --steps {run}/training.csv --out figures/embedded/training",
        figures,
    )
    one.add_argument("--steps", type=Path, required=True, metavar="CSV", help="what `collect-training` wrote")
    one.add_argument("--out", type=Path, required=True, metavar="STEM", help="path without .png, .svg, .csv")
    one = verb(
        "drift",
        "distance to full precision before and after training",
        f"figure drift --layers {run}/drift.csv --out figures/embedded/drift",
        figures,
    )
    one.add_argument("--layers", type=Path, required=True, metavar="CSV", help="what `collect-training` wrote")
    one.add_argument("--out", type=Path, required=True, metavar="STEM", help="path without .png, .svg, .csv")

    one = configured(
        verb(
            "collect-training",
            "gather the records of all training into training.csv, gradients.csv and drift.csv",
            f"collect-training --config {run}/config.yaml --results {run}",
        )
    )
    one.add_argument("--results", type=Path, required=True, metavar="DIR", help="results/<run>")
    one = verb(
        "claims",
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
        "paired differences between two runs",
        "compare results/reference/scores.csv results/embedded/scores.csv --out compare.csv",
    )
    one.add_argument("a", type=Path, metavar="A", help="a scores.csv")
    one.add_argument("b", type=Path, metavar="B", help="another scores.csv")
    one.add_argument("--out", type=Path, metavar="CSV", help="also write the differences there")
    one = verb(
        "bench",
        "time a packed checkpoint beside its decoded twin: decoding, prefill, memory",
        f"bench {run}/mini-llama/r2q-g64/seed0 --out bench.csv",
    )
    one.add_argument("folder", type=Path, metavar="FOLDER", help="a packed checkpoint")
    one.add_argument("--out", type=Path, required=True, metavar="CSV", help="the rows; as JSON beside it, too")
    one.add_argument("--batch", type=_numbers, default=(1, 4, 16), metavar="N,N", help="rows at once (1,4,16)")
    one.add_argument("--context", type=int, default=512, metavar="N", help="tokens before the one timed (512)")
    one.add_argument("--repeats", type=int, default=20, metavar="N", help="times of which the median is taken (20)")
    one.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 (auto)")
    one = verb(
        "schema",
        "print the JSON schema of the config",
        "schema > workflow/schemas/config.schema.json",
    )
    one.add_argument("--check", action="store_true", help="print nothing; exit with 1 when the schema file is stale")
    verbs.add_parser("lm-eval", add_help=False, help="lm-eval's own command line, which can then read packed folders")
    return main
