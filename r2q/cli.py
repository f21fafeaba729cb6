"""The command line, built from the files of `r2q.verbs`: what rules of the workflow run, and what is asked by hand.

Bad input prints one sentence to the terminal and exits with 2; anything else is a fault of ours, shows its traceback
and exits with 1.
"""

import argparse
import errno
import inspect
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from importlib import import_module
from io import TextIOWrapper
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, TextIO, get_args, get_origin, get_type_hints

from r2q import __version__
from r2q.kept import PATHS, held
from r2q.measure import Measured
from r2q.verbs import Results

# of paths that are as wrong as `PATHS`, without a class: a file system is read-only or full, a name too long
UNUSABLE = (errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.ENAMETOOLONG, errno.ELOOP)
ABOUT = "2-bit weight quantization of language models: quantize, evaluate, tabulate, compare."
EPILOG = (
    "`snakemake` runs all verbs in order; they are here for a single step by hand. `r2q VERB --help` has an example. "
    "R2Q_TRACEBACK=1 shows the traceback of bad input, too; `source <(r2q completion)` completes in bash."
)


def verbs() -> list[str]:
    """All verbs; their files are not read."""
    return sorted(file.stem.replace("_", "-") for file in Path(__file__).with_name("verbs").glob("[a-z]*.py"))


def function(verb: str) -> Callable[..., int | None]:
    """The function of a verb."""
    name = verb.replace("-", "_")
    return getattr(import_module(f"r2q.verbs.{name}"), name)


def _arguments(of: Callable[..., Any]) -> Iterator[tuple[inspect.Parameter, type, str, str]]:
    """Parameter, type, metavar and help of every argument of a verb."""
    hints = get_type_hints(of, include_extras=True)
    for name, parameter in inspect.signature(of).parameters.items():
        kind, metavar, text = get_args(hints[name])
        if isinstance(kind, UnionType):  # ... | None
            kind = next(part for part in get_args(kind) if part is not NoneType)
        yield parameter, kind, metavar, text


def parser(verb: str) -> argparse.ArgumentParser:
    """What can be typed after a verb."""
    of = function(verb)
    about, _, example = (inspect.getmodule(of).__doc__ or "").partition("\n")  # type: ignore[union-attr]
    made = argparse.ArgumentParser(
        prog=f"r2q {verb}",
        description=about[:1].upper() + about[1:] + ".",
        epilog=f"example:\n{example.strip()}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    for parameter, kind, metavar, text in _arguments(of):
        needed = parameter.default is parameter.empty
        several: dict[str, Any] = {"nargs": "+"} if get_origin(kind) is list else {}
        if several:
            (kind,) = get_args(kind)
        choices: dict[str, Any] = {"choices": get_args(kind)} if get_origin(kind) is Literal else {}
        plain: Any = str if choices else kind
        if parameter.kind is parameter.POSITIONAL_ONLY:
            how: dict[str, Any] = several
            if not needed:  # of several: all that follows, dashes included
                how = {"nargs": argparse.REMAINDER if several else "?", "default": parameter.default}
            made.add_argument(parameter.name, type=plain, metavar=metavar, help=text, **how)
            continue
        more: dict[str, Any] = {"action": "store_true"}
        if kind is not bool:
            more = {"type": plain, "metavar": metavar, **several, **choices}
        more |= {"required": True} if needed else {"default": parameter.default}
        made.add_argument(f"--{parameter.name.replace('_', '-')}", help=text, **more)
    made.add_argument("--log", type=Path, metavar="FILE", help="also write progress, and all warnings only, there")
    return made


def options(verb: str) -> list[str]:
    """What begins with dashes after a verb."""
    return [name for action in parser(verb)._actions for name in action.option_strings if name.startswith("--")]


def _usage() -> str:
    known = {verb: (sys.modules[function(verb).__module__].__doc__ or "").partition("\n")[0] for verb in verbs()}
    lines = [f"  {verb:{max(map(len, known))}}  {about}" for verb, about in known.items()]
    return "\n".join(["usage: r2q [--version] VERB ...", "", ABOUT, "", *lines, "", EPILOG])


class _Tee:
    """Standard output that also goes to the log, line by line: jobs at once write to one terminal."""

    def __init__(self, *streams: TextIO) -> None:
        self.streams, self.line = streams, ""

    def write(self, text: str) -> int:
        whole, end, self.line = (self.line + text).rpartition("\n")
        self._pass_on(whole + end)
        return len(text)

    def flush(self) -> None:
        self._pass_on(self.line)
        self.line = ""

    def _pass_on(self, text: str) -> None:
        for stream in self.streams if text else ():
            stream.write(text)
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
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # what the terminal's encoding lacks, such as arrows, stops nothing
    verb, rest = (given[0], given[1:]) if given else ("", [])
    if verb in ("--help", "-h", "--version"):
        print(f"r2q {__version__}" if verb == "--version" else _usage())
        return 0
    if verb not in (known := verbs()):
        from r2q.config import nearest

        print(
            f"usage: r2q VERB ...\nerror: unknown verb {verb}{nearest(verb, known)}" if verb else _usage(),
            file=sys.stderr,
        )
        return 2
    return _run(verb, rest)


def _run(verb: str, rest: list[str]) -> int:
    of = function(verb)
    if [kind for _, kind, _, _ in _arguments(of)] == [list[str]]:  # another program's arguments
        return of(rest) or 0
    args = vars(parser(verb).parse_args(rest))
    log, out = args.pop("log"), args.get("out")
    if get_type_hints(of, include_extras=True).get("out") == Results:
        out = args["out"] / verb  # several verbs write files of their own into a run's folder, at once
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))  # a method of your own, named with dots, may stand in the working folder
    try:
        terminal = _log_to(log) if log else None
    except OSError as error:
        _print_error(f"error: --log: {_said(error)}\n", None)
        return 2
    try:
        with Measured() as cost, held(out) if out is not None else nullcontext():
            plain = [args.pop(p.name) for p, *_ in _arguments(of) if p.kind is p.POSITIONAL_ONLY]
            status = of(*plain, **args) or 0
        if log:
            what = " ".join(filter(None, [verb, args.get("model"), args.get("recipe")]))
            print(f"{what}: done in {cost.seconds:.1f} s, {cost.cpu_seconds:.1f} s of CPU")
        return status
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # the reader has left, as `head` does
        return 1
    except KeyboardInterrupt:
        _print_error("interrupted\n", terminal)
        return 130
    except Exception as error:
        bad = isinstance(error, (ValueError, *PATHS)) or (isinstance(error, OSError) and error.errno in UNUSABLE)
        if log or not bad or os.environ.get("R2Q_TRACEBACK"):
            traceback.print_exc()
        if bad:
            said = "".join(f"error: {line}\n" for line in _said(error).splitlines()) or f"error: {error!r}\n"
            _print_error(said, terminal)
            return 2
        if terminal is not None:
            said = "".join(traceback.format_exception_only(error)).rstrip().removesuffix(":")
            _print_error(f"error: {said}\n  traceback in {log}\n", terminal)
        return 1


def _said(error: BaseException) -> str:
    """The message of an error; of one that the system raises, the file that was asked for and why not."""
    if not isinstance(error, OSError) or error.strerror is None or error.filename is None:
        return str(error)
    file = error.filename if error.filename2 is None else error.filename2  # of a rename: what it was to be
    return f"{file}: {error.strerror}"


def _print_error(text: str, terminal: TextIO | None) -> None:
    """To the log, if there is one, and to the terminal."""
    for stream in {sys.stderr, terminal or sys.stderr}:
        stream.write(text)
        stream.flush()
