"""What the config asks of a method: where its class is, what options it takes, what it needs.

A config is checked on every `snakemake -n`, and importing torch takes seconds. So a class is first looked up in the
text of its file: its bases, followed through import statements, and attributes that are plain values. Its options are
imported as any Python is, from the module that the file imports them from (``baselines/options/`` here), which has
to do without torch. A method for which that does not do (options in the file itself, values that are computed) is
imported as a whole: the same answer, a few seconds later.
"""

import ast
import importlib
import importlib.util
import os
import sys
import sysconfig
from collections.abc import Mapping, Set
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args

from r2q.config.base import ConfigError, MethodOptions, nearest
from r2q.kept import ROOT

R2Q = "r2q.quantization.residual"
CONTRACT = "r2q.quantization.method"
Needs = Literal["weights", "calibration", "training", "checkpoint"]
Line = list[tuple[str, str, set[str]]]  # a class and its ancestors: module, name, names that each gives a value


@dataclass(frozen=True)
class MethodInfo:
    """One method: where its class is, and the attributes of the contract."""

    module: str
    name: str
    path: Path  # the source file
    options: type[MethodOptions]
    needs: Needs
    stochastic: bool
    version: int
    control: bool
    quantizes: bool
    leaves_latent: bool
    scales_inputs: bool
    weight_method: bool  # whether it is a function of one weight
    own_step: str | None  # a step in its own way that is not asked inside another method, see :func:`own_step`
    trains: bool  # whether it is a training frame, with its options and records; others may read training rows, too

    @property
    def label(self) -> str:
        """The shortest name: `r2q`, a file of baselines/, or the class of somebody else."""
        if self.module == R2Q:
            return "r2q"
        package, _, file = self.module.rpartition(".")
        return file if package == "baselines" else f"{self.module}.{self.name}"


# what a class does not say of itself
PLACE = ("module", "name", "path", "options", "weight_method", "own_step", "trains")
FACTS = tuple(fact.name for fact in fields(MethodInfo) if fact.name not in PLACE)


_BROUGHT: set[str] = set()  # modules that the import of a method, or of its options, brought into this process


class _Unread(Exception):
    """The text of a file does not say; the class itself will."""


def built_in_methods() -> list[str]:
    """Names that need no dots: `r2q` and every file of `baselines/`."""
    files = sorted(_package("baselines").glob("*.py"))
    return ["r2q", *(f.stem for f in files if not f.stem.startswith("_"))]


@cache
def method_info(name: str) -> MethodInfo:
    """Everything the config may ask about a method. Raises ConfigError."""
    module, cls = _where(name)
    path = _source(module)
    if path is None and "." in name:
        raise ConfigError(f"unknown method {name}: no file of a module {module} in this folder or an installed package")
    if path is None:
        raise ConfigError(f"unknown method {name}{nearest(name, built_in_methods())}")
    try:
        classes = _read(module).classes
        cls = cls or _method_class(name, path, classes)
        try:
            facts = {fact: _attribute(module, cls, fact) for fact in (*FACTS, "Options")}
            line = [(where, base, _names(where, base)) for where, base in _ancestors(module, cls)]
        except _Unread:
            facts, line = _imported(module, cls)
    except ConfigError as error:
        raise ConfigError(f"method {name}: {error}") from None
    ancestors = [base for _, base, _ in line]
    if "Method" not in ancestors:
        raise ConfigError(f"method {name}: {cls} in {path} does not build on r2q.quantization.method.Method")
    options = facts.pop("Options")
    if not (isinstance(options, type) and issubclass(options, MethodOptions)):
        raise ConfigError(f"method {name}: Options of {cls} in {path} must be a subclass of MethodOptions")
    if "quantizer" in options.model_fields and "quantizer_options" not in options.model_fields:
        raise ConfigError(f"method {name}: an option quantizer is a method's name (QuantizerOptions); rename it")
    if facts["needs"] not in (valid := get_args(Needs)):
        raise ConfigError(f"method {name}: needs of {cls} is {facts['needs']!r}; valid: {', '.join(valid)}")
    for fact in FACTS:
        kind = {"needs": str, "version": int}.get(fact, bool)
        if type(facts[fact]) is not kind:
            raise ConfigError(f"method {name}: {fact} of {cls} is {facts[fact]!r}, not of type {kind.__name__}")
    one, frame = "WeightMethod" in ancestors, "TrainingMethod" in ancestors
    return MethodInfo(module, cls, path, options, weight_method=one, own_step=_own(line), trains=frame, **facts)


def own_step(cls: type) -> str | None:
    """`quantize` or `quantize_weight`, where a method of one weight does it in a way of its own; else None.

    Training and GPTQ ask a method for its levels and codes alone: what they gave would not be this method's.
    """
    return _own(_line(cls))


def _own(line: Line) -> str | None:
    steps = ("quantize", "quantize_weight")
    return next((step for step in steps for where, _, names in line if where != CONTRACT and step in names), None)


def _line(cls: type) -> Line:
    return [(base.__module__, base.__name__, set(vars(base))) for base in cls.__mro__]


def methods_named(method: str, options: Mapping[str, Any]) -> list[MethodInfo]:
    """A method and, where its options name one, the quantizer inside of it. Raises ConfigError."""
    return [method_info(name) for name in (method, options.get("quantizer")) if name is not None]


def import_method(name: str) -> type:
    """The class of a method, which imports torch. Raises ConfigError."""
    info = method_info(name)
    return getattr(_import(info.module), info.name)


def _imported(module: str, cls: str) -> tuple[dict[str, Any], Line]:
    """Facts and ancestors of the class itself."""
    content = vars(_import(module))
    if cls not in content:
        classes = [name for name, value in content.items() if isinstance(value, type)]
        raise ConfigError(f"{module} has no class {cls}{nearest(cls, classes)}")
    imported = content[cls]
    if not isinstance(imported, type) or not all(hasattr(imported, fact) for fact in FACTS):
        raise ConfigError(f"{cls} of {module} does not build on r2q.quantization.method.Method")
    return {fact: getattr(imported, fact) for fact in (*FACTS, "Options")}, _line(imported)


def _import(module: str) -> Any:
    if str(Path.cwd()) not in sys.path and "" not in sys.path:
        sys.path.append(str(Path.cwd()))  # a method of one's own may stand in the working folder
    before = set(sys.modules)
    try:
        return importlib.import_module(module)
    except Exception as error:  # whatever somebody's file raises
        raise ConfigError(f"{module} cannot be imported ({type(error).__name__}: {error})") from error
    finally:
        _BROUGHT.update(sys.modules.keys() - before)


def forget(kept: Set[str]) -> None:
    """Drop what this process has read and imported of methods, but for modules `kept`, r2q itself and installed ones.

    A process that forks others would hand on what their files once held, and keys are of what they hold now.
    """
    method_info.cache_clear()
    _read.cache_clear()
    installed = tuple(sysconfig.get_path(kind) for kind in ("stdlib", "purelib", "platlib"))
    for name in (_BROUGHT & sys.modules.keys()) - kept:
        file = getattr(sys.modules[name], "__file__", None) or ""
        if name.partition(".")[0] != "r2q" and file.endswith(".py") and not file.startswith(installed):
            del sys.modules[name]


def _where(name: str) -> tuple[str, str | None]:
    if name == "r2q":
        return R2Q, None
    if "." in name:
        module, _, cls = name.rpartition(".")
        return module, cls
    return f"baselines.{name}", None


def _package(name: str) -> Path:
    """Folder of a top-level package, or of one in the working folder; does not import it."""
    if str(ROOT) not in sys.path:  # a wheel keeps baselines where no other package's name can meet it
        sys.path.insert(0, str(ROOT))
    spec = importlib.util.find_spec(name)
    locations = list(spec.submodule_search_locations or []) if spec else []
    if not locations and spec is not None and spec.origin:
        return Path(spec.origin).with_suffix("")
    return Path(locations[0]) if locations else Path.cwd() / name


def _source(module: str) -> Path | None:
    """Source file of a module, found without importing its parents (which may import torch)."""
    parts = module.split(".")
    if not all(part.isidentifier() for part in parts):
        return None
    base = _package(parts[0]).joinpath(*parts[1:])
    candidates = (base.with_suffix(".py"), base / "__init__.py")
    return next((path for path in candidates if os.path.isfile(path)), None)  # noqa: PTH113 - False for a name too long


@dataclass(frozen=True)
class _Text:
    """The statements of a file that matter here: classes by name, and (module, name) of what is imported."""

    classes: dict[str, ast.ClassDef]
    imports: dict[str, tuple[str, str | None]]


@cache
def _read(module: str) -> _Text:
    path = _source(module)
    if path is None:
        raise _Unread
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"), filename=str(path))
    except (SyntaxError, ValueError) as error:
        line = f" line {error.lineno}" if isinstance(error, SyntaxError) else ""
        raise ConfigError(f"{path.name}{line} is not valid Python ({error})") from None
    imports: dict[str, tuple[str, str | None]] = {}
    parents = module.split(".")
    for node in tree.body:
        if isinstance(node, ast.ImportFrom):
            start = ".".join(parents[: -node.level]) if node.level else ""
            source = ".".join(filter(None, [start, node.module]))
            imports |= {alias.asname or alias.name: (source, alias.name) for alias in node.names}
        elif isinstance(node, ast.Import):
            imports |= {alias.asname: (alias.name, None) for alias in node.names if alias.asname}
    return _Text({node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}, imports)


def _named(module: str, node: ast.expr) -> tuple[str, str]:
    """(module, name) that a name stands for in a file."""
    text = _read(module)
    if isinstance(node, ast.Name):
        if node.id in text.classes:
            return module, node.id
        source, name = text.imports.get(node.id, ("", None))
        if name is not None:
            return source, name
    elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
        source, name = text.imports.get(node.value.id, ("", None))
        if source:
            return source if name is None else f"{source}.{name}", node.attr
    raise _Unread


def _ancestors(module: str, cls: str) -> list[tuple[str, str]]:
    """(module, class) of a class and its bases, first bases first, down to those of the contract."""
    node = _read(module).classes.get(cls)
    if node is None or node.decorator_list:  # a decorator may change what stands there
        raise _Unread
    ancestors = [(module, cls)]
    if (module, cls) != (CONTRACT, "Method"):
        for base in node.bases:
            ancestors += _ancestors(*_named(module, base))
    return ancestors


def _attribute(module: str, cls: str, fact: str) -> Any:
    """The value of a class attribute: a plain value, or the options by importing them."""
    for where, owner in _ancestors(module, cls):
        for statement in _read(where).classes[owner].body:
            if fact not in _bound(statement):
                continue
            value = statement.value if isinstance(statement, ast.Assign | ast.AnnAssign) else None
            if value is None:
                raise _Unread
            if isinstance(value, ast.Constant):
                return value.value
            source, name = _named(where, value)
            if fact != "Options" or source == where:  # options beside torch come with the class
                raise _Unread
            return getattr(_import(source), name)
    raise _Unread


def _names(module: str, cls: str) -> set[str]:
    """Names that the body of a class may give a value."""
    return {name for statement in _read(module).classes[cls].body for name in _bound(statement)}


def _bound(statement: ast.stmt) -> set[str]:
    """Names that a statement in the body of a class may give a value; of a class or function only its own."""
    if isinstance(statement, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        return {statement.name}
    names = {n.id for n in ast.walk(statement) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
    return names | {n.name for n in ast.walk(statement) if isinstance(n, ast.ClassDef | ast.FunctionDef)}


def _method_class(name: str, path: Path, classes: dict[str, ast.ClassDef]) -> str:
    """The one public class with a base that is not the options; bases named ...Method win over helpers."""
    public = [c for c in classes.values() if not c.name.startswith("_") and c.name != "Options" and c.bases]
    named = [c for c in public if any(ast.unparse(base).endswith("Method") for base in c.bases)]
    candidates = named or public
    if len(candidates) != 1:
        names = ", ".join(c.name for c in candidates) or "none"
        raise ConfigError(f"{path} must have exactly one public Method class, has {names}")
    return candidates[0].name
