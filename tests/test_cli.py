"""The command line: examples that parse, errors that are sentences, logs, and an import that costs nothing."""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
import types
from collections.abc import Iterator
from pathlib import Path

import pytest
from r2q.arguments import parser

from r2q import cli
from r2q.config import ConfigError
from r2q.kept import ROOT


def verbs(of: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """Every parser that leads to a verb."""
    if of.get_default("verb"):
        yield of
    for action in of._actions:
        if isinstance(action, argparse._SubParsersAction):
            for inner in action.choices.values():
                yield from verbs(inner)


def test_every_verb_has_a_function_and_an_example_that_parses() -> None:
    found = list(verbs(parser()))
    assert {verb.get_default("verb") for verb in found} == set(cli.VERBS)
    for verb in found:
        assert verb.epilog is not None
        example = verb.epilog.removeprefix("example:\n  r2q ").split(" > ")[0]
        args = parser().parse_args(shlex.split(example.replace("\\\n", " ")))
        assert args.verb == verb.get_default("verb")


def test_help_names_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(["--help"])
    text = capsys.readouterr().out
    assert stop.value.code == 0
    assert all(f"    {verb.split()[0]}" in text for verb in cli.VERBS)
    assert "    lm-eval" in text


@pytest.mark.parametrize("arguments", [[], ["quantise"], ["quantize"], ["table", "--scores"]])
def test_a_wrong_command_line_is_told_and_exits_with_2(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(arguments)
    assert stop.value.code == 2
    assert "usage: r2q" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (ConfigError("a.yaml: x: wrong\na.yaml: y: wrong"), 2, "error: a.yaml: x: wrong\nerror: a.yaml: y: wrong\n"),
        (FileNotFoundError("no file scores.csv"), 2, "error: no file scores.csv\n"),
        (ValueError(), 2, "error: ValueError()\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
    ],
)
def test_bad_input_is_a_sentence_without_traceback(
    error: BaseException,
    status: int,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fails(args: argparse.Namespace) -> None:
        raise error

    monkeypatch.setitem(cli.VERBS, "schema", fails)
    monkeypatch.delenv("R2Q_TRACEBACK", raising=False)
    assert cli.main(["schema"]) == status
    assert capsys.readouterr().err == message


def test_a_fault_of_ours_shows_its_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(cli.VERBS, "schema", lambda args: 1 // 0)
    assert cli.main(["schema"]) == 1
    assert "ZeroDivisionError" in capsys.readouterr().err


LOGGED = """
import os, sys, warnings
from r2q import cli
def verb(args):
    print("progress")
    warnings.warn("noise")
    os.write(2, b"noise of a library\\n")
    if args.check:
        raise {error}
cli.VERBS["schema"] = verb
sys.exit(cli.main(sys.argv[1:]))
"""


def logged(tmp_path: Path, error: str, *arguments: str) -> tuple[subprocess.CompletedProcess[str], str]:
    log = tmp_path / "logs" / "verb.log"
    command = [sys.executable, "-c", LOGGED.format(error=error), "schema", "--log", str(log), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    return done, log.read_text()


def test_a_log_gets_everything_the_terminal_only_progress(tmp_path: Path) -> None:
    done, log = logged(tmp_path, "None")
    assert done.returncode == 0
    assert done.stdout.startswith("progress\nschema: done in ")
    assert done.stderr == ""
    assert all(text in log for text in ("progress", "UserWarning: noise", "noise of a library", "schema: done in"))


@pytest.mark.parametrize(
    ("error", "status"), [("ValueError('no such thing')", 2), ("RuntimeError('no such thing')", 1)]
)
def test_the_last_word_of_a_failure_reaches_terminal_and_log(tmp_path: Path, error: str, status: int) -> None:
    done, log = logged(tmp_path, error, "--check")
    assert done.returncode == status
    assert done.stderr.startswith("error: ")
    assert "no such thing" in done.stderr
    assert "Traceback" not in done.stderr
    assert "Traceback" in log
    assert log.rstrip().endswith(done.stderr.rstrip())


def test_schema_is_printed_and_checked(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from r2q.config import schema

    assert cli.main(["schema"]) == 0
    assert capsys.readouterr().out == schema.schema_path().read_text()
    assert cli.main(["schema", "--check"]) == 0
    monkeypatch.setattr(schema, "schema_text", lambda: "{}")
    assert cli.main(["schema", "--check"]) == 1
    assert "run: python -m r2q schema >" in capsys.readouterr().err


def test_lm_eval_gets_the_rest_of_the_line_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[str]] = []
    stub = types.ModuleType("lm_eval.__main__")
    stub.cli_evaluate = lambda: seen.append(sys.argv)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "lm_eval.__main__", stub)
    monkeypatch.setattr(sys, "argv", ["r2q"])
    assert cli.main(["lm-eval", "--model", "hf", "--log", "x", "--help"]) == 0
    assert seen == [["lm-eval", "--model", "hf", "--log", "x", "--help"]]


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_importing_r2q_and_asking_for_help_is_light() -> None:
    heavy = "print(sorted({'torch', 'transformers', 'pandas', 'numpy', 'pydantic'} & sys.modules.keys()))"
    assert run(f"import sys, r2q; {heavy}") == "[]"
    assert run(f"import sys, r2q.cli as c; c.parser().format_help(); {heavy}") == "[]"


@pytest.mark.parametrize("order", ["import r2q, transformers", "import transformers.quantizers.auto, r2q"])
def test_the_quantizer_is_registered_whoever_is_imported_first(order: str) -> None:
    ask = "from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING as m; print('r2q' in m)"
    assert run(f"{order}; {ask}") == "True"


def test_the_hook_calls_once_after_the_import_and_hides_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from r2q._hook import after_import

    (tmp_path / "late_module.py").write_text("VALUE = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    before = list(sys.meta_path)
    calls: list[int] = []
    after_import("late_module", lambda: calls.append(sys.modules["late_module"].VALUE))
    assert calls == []
    import late_module  # type: ignore[import-not-found]

    assert calls == [1]
    assert sys.meta_path == before
    assert type(late_module.__loader__).__module__.startswith(("_frozen_importlib", "importlib"))
    after_import("late_module", lambda: calls.append(2))
    assert calls == [1, 2]
    del sys.modules["late_module"]
