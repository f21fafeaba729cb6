"""The command line: examples that parse, errors that are sentences, logs, and an import that costs nothing."""

import errno
import io
import os
import shlex
import subprocess
import sys
import types
from pathlib import Path

import pytest

import r2q
from r2q import cli
from r2q.config import ConfigError
from r2q.kept import ROOT
from tests.workflow import printed


def test_every_file_is_a_verb_with_a_function_and_an_example_that_parses() -> None:
    files = {file.stem for file in (ROOT / "r2q" / "verbs").glob("*.py")} - {"__init__"}
    assert {verb.replace("-", "_") for verb in cli.verbs()} == files
    for verb in cli.verbs():
        assert cli.function(verb).__name__ == verb.replace("-", "_")
        if verb in ("lm-eval", "completion"):
            continue
        epilog = cli.parser(verb).epilog
        assert epilog is not None
        example = epilog.removeprefix(f"example:\nr2q {verb}").split(" > ")[0]
        words = shlex.split(example.replace("\\\n", " ").split("\n")[0])
        cli.parser(verb).parse_args(words)
        for word in words:  # of what stands here after a run there may be nothing yet
            assert not word.startswith(("config/", "results/reference")) or holds(ROOT / word), word


def holds(path: Path) -> bool:
    """Whether a path is a file, or a run's folder."""
    return path.is_file() or (path / "scores.csv").is_file()


def test_every_rule_calls_the_verb_of_its_name() -> None:
    rules = "\n".join(path.read_text() for path in (ROOT / "workflow" / "rules").glob("*.smk"))
    called = {}
    for rule in rules.split("\nrule ")[1:]:
        if "python -m r2q " in rule:
            called[rule.split(":")[0]] = rule.split("python -m r2q ")[1].split()[0]
    assert called
    assert {name.replace("_", "-"): verb for name, verb in called.items()} == {verb: verb for verb in called.values()}


def test_help_names_every_verb_and_version_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(f"  {verb} " in text for verb in cli.verbs())
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"r2q {r2q.__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "usage: r2q"),
        (["quantise"], "unknown verb quantise; nearest valid: quantize"),
        (["quantize"], "the following arguments are required: --config"),
        (["table", "--results"], "argument --results: expected one argument"),
        (["quantize", "--seed", "one"], "argument --seed: invalid int value"),
    ],
)
def test_a_wrong_command_line_is_told_and_exits_with_2(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        status = cli.main(arguments)
    except SystemExit as stop:
        status = int(str(stop.code))
    assert status == 2
    assert said in capsys.readouterr().err


def test_bash_completes_verbs_and_their_arguments(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["completion"]) == 0
    script = capsys.readouterr().out
    for words, expected in ((["r2q", "quan"], "quantize"), (["r2q", "quantize", "--re"], "--recipe")):
        line = f"COMP_WORDS=({' '.join(words)}); COMP_CWORD={len(words) - 1}; _r2q; echo ${{COMPREPLY[@]}}"
        done = subprocess.run(["bash", "-c", f"{script}\n{line}"], capture_output=True, text=True, check=True)
        assert done.stdout.split() == [expected]


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
    error: BaseException, status: int, message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails() -> None:
        raise error

    monkeypatch.setattr(cli, "function", lambda verb: fails)
    monkeypatch.delenv("R2Q_TRACEBACK", raising=False)
    assert cli.main(["schema"]) == status
    assert capsys.readouterr().err == message


def test_a_fault_of_ours_shows_its_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cli, "function", lambda verb: lambda: 1 // 0)
    assert cli.main(["schema"]) == 1
    assert "ZeroDivisionError" in capsys.readouterr().err


LOGGED = """
import os, sys, warnings
from typing import Annotated
from r2q import cli
def verb(check: Annotated[bool, "", ""] = False):
    # no docstring: this stands in a string
    print("progress")
    warnings.warn("noise")
    os.write(2, b"noise of a library\\n")
    if check:
        raise {error}
cli.function = lambda name: verb
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


def test_a_line_reaches_the_terminal_in_one_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another job would write between a line and its end."""
    written: list[str] = []
    stream = io.StringIO()
    monkeypatch.setattr(stream, "write", written.append)
    tee = cli._Tee(stream)
    print("evaluate mini-llama", "done", file=tee)
    print("half", end="", file=tee)
    assert written == ["evaluate mini-llama done\n"]
    tee.flush()
    assert written == ["evaluate mini-llama done\n", "half"]


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


@pytest.mark.parametrize(
    ("out", "reason"),
    [
        ("file/x.html", "File exists"),
        ("file", "Is a directory"),
        ("file/deep/x.html", "Not a directory"),
        ("x" * 300, "File name too long"),
    ],
    ids=["a file", "a folder", "below a file", "too long"],
)
@pytest.mark.parametrize("option", ["--out", "--log"])
def test_a_place_that_cannot_be_written_is_a_sentence(
    option: str,
    out: str,
    reason: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    place = tmp_path / "file"
    place.mkdir() if out == "file" else place.touch()
    monkeypatch.delenv("R2Q_TRACEBACK", raising=False)
    others = [] if option == "--out" else ["--out", str(tmp_path / "page.html")]
    results = ROOT / "results" / "reference" / "smollm2-cpu"
    assert cli.main(["page", str(results), option, str(tmp_path / out), *others]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert said.endswith(f": {reason}\n")
    assert str(tmp_path) in said
    assert said.count("\n") == 1


@pytest.mark.parametrize("number", [errno.EROFS, errno.ENOSPC, errno.EDQUOT])
def test_a_disk_that_takes_nothing_is_a_sentence(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def page(*_: object) -> None:
        raise OSError(number, os.strerror(number), "/disk/page.html")

    monkeypatch.delenv("R2Q_TRACEBACK", raising=False)
    monkeypatch.setattr("r2q.report.page.page", page)
    assert cli.main(["page", "run", "--out", str(tmp_path / "page.html")]) == 2
    assert capsys.readouterr().err == f"error: /disk/page.html: {os.strerror(number)}\n"


def test_verbs_that_write_into_a_runs_folder_do_so_at_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As Snakemake starts them; the same verb twice is refused."""
    asked = ["--config", "config/smoke.yaml", "--out", str(tmp_path)]
    meanwhile: list[int] = []

    def both(*_: object) -> None:
        meanwhile.extend(cli.main([verb, *asked]) for verb in ("collect-training", "collect"))

    monkeypatch.setattr("r2q.report.collect.collect", both)
    monkeypatch.setattr("r2q.report.training.gather_training", lambda *_: None)
    assert cli.main(["collect", *asked]) == 0
    assert meanwhile == [0, 2]
    assert list(tmp_path.iterdir()) == []  # no lock is left


def test_a_terminal_of_few_letters_stops_no_verb(tmp_path: Path) -> None:
    asked = ["--results", "results/reference/smollm2-cpu", "--out", tmp_path, "--show"]
    shown = subprocess.run(
        [sys.executable, "-m", "r2q", "table", *asked],
        env=os.environ | {"PYTHONIOENCODING": "ascii"}, capture_output=True, check=True,
    )  # fmt: skip
    assert b"kl ?" in shown.stdout


def test_a_config_and_models_that_come_with_r2q_are_found_in_any_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["estimate", "config/smoke.yaml"]) == 0
    assert "config/smoke.yaml: 6 units" in capsys.readouterr().out
    (tmp_path / "mine.yaml").write_bytes((ROOT / "config" / "smoke.yaml").read_bytes())
    assert cli.main(["estimate", "mine.yaml"]) == 0


def test_a_figure_without_its_variant_and_a_folder_of_figures_that_is_not_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = str(ROOT / "results" / "reference" / "smollm2-cpu")
    assert cli.main(["figure", "frontier", "--results", results, "--out", str(tmp_path / "f")]) == 2
    assert "there are frontier-bytes, frontier-bits" in capsys.readouterr().err
    assert cli.main(["page", results, "--out", str(tmp_path / "p.html"), "--figures", str(tmp_path / "none")]) == 2
    assert f"there is no folder {tmp_path / 'none'}" in capsys.readouterr().err


def test_schema_is_printed_and_checked(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from r2q.config import schema

    assert cli.main(["schema"]) == 0
    assert capsys.readouterr().out == schema.SCHEMA.read_text()
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


def test_importing_r2q_and_asking_for_help_is_light() -> None:
    heavy = "print(sorted({'torch', 'transformers', 'pandas', 'numpy', 'pydantic'} & sys.modules.keys()))"
    assert printed(f"import sys, r2q; {heavy}") == "[]"
    assert printed(f"import sys, r2q.cli as c; c.parser('quantize').format_help(); c._usage(); {heavy}") == "[]"


@pytest.mark.parametrize("order", ["import r2q, transformers", "import transformers.quantizers.auto, r2q"])
def test_the_quantizer_is_registered_whoever_is_imported_first(order: str) -> None:
    ask = "from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING as m; print('r2q' in m)"
    assert printed(f"{order}; {ask}") == "True"


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


SERVED = """
import os, subprocess, sys
from r2q import server
server.start()
done = subprocess.run([sys.executable, "-m", "r2q", *sys.argv[1:]], capture_output=True, text=True)
print(done.returncode, os.path.exists(os.environ["R2Q_SERVER"]), done.stdout, done.stderr)
"""


def test_a_verb_in_the_server_is_the_same_verb(tmp_path: Path) -> None:
    """Exit status, output, error and files: of a verb that works, and of one that is given bad input."""
    command = [sys.executable, "-c", SERVED, "prepare", "--config", str(ROOT / "config" / "smoke.yaml")]
    model = ("--model", "mini-opt")
    one, other = tmp_path / "a" / "m" / "p.json", tmp_path / "b" / "m" / "p.json"
    done = subprocess.run([*command, *model, "--out", str(one)], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.startswith("0 True prepare mini-opt: OPTForCausalLM"), done.stderr
    alone = subprocess.run([*command[:1], "-m", "r2q", *command[3:], *model, "--out", str(other)], cwd=ROOT)
    assert alone.returncode == 0
    assert one.read_bytes() == other.read_bytes()
    done = subprocess.run([*command, "--model", "none", "--out", str(one)], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.startswith("2 True  error: ")
    assert "unknown model none; valid: mini-llama, mini-opt" in done.stdout
    assert "Traceback" not in done.stdout


@pytest.mark.parametrize(
    ("given", "profile"),
    [
        ([], "profiles/default"),
        (["--workflow-profile", "profiles/slurm", "-n"], "profiles/slurm"),
        (["--cores", "2", "--workflow-profile", "none"], None),
    ],
)
def test_run_finds_what_is_shipped_from_any_folder_and_passes_the_rest_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: list[str], profile: str | None
) -> None:
    calls = []
    monkeypatch.setattr("os.execv", lambda program, arguments: calls.append(arguments))
    monkeypatch.chdir(tmp_path)
    assert cli.main(["run", "config/smoke.yaml", *given]) == 0
    (said,) = calls
    assert said[said.index("--configfile") + 1] == str(ROOT / "config" / "smoke.yaml")
    assert said.count("--workflow-profile") == 1
    assert said[said.index("--workflow-profile") + 1] == (str(ROOT / profile) if profile else "none")
    assert set(given) - {"profiles/slurm"} <= set(said)


def test_run_prefers_what_is_here_and_refuses_a_bad_config_in_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "smoke.yaml").write_text("runn: x\n")
    monkeypatch.chdir(tmp_path)
    assert cli.main(["run", "config/smoke.yaml"]) == 2
    assert "error: config/smoke.yaml: runn" in capsys.readouterr().err
