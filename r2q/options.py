"""What a method's file says about itself, read without running it.

A config has to be checked in a fraction of a second, before the first job and on every `snakemake -n`, while the files
of the methods import torch. So the statement `class Options(...)` is cut out of the file's syntax tree and run on its
own, with nothing but the names of `typing` and `pydantic`.
"""

from __future__ import annotations

import ast
import builtins
import difflib
import importlib
import importlib.util
import typing
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pydantic
from pydantic import BaseModel, ConfigDict


class ConfigError(ValueError):
    """Something asked for cannot be; the message has one sentence per problem."""


class MethodOptions(BaseModel):
    """Base of every method's `Options`: closed, frozen, and built only from names of `typing` and `pydantic`.

    Training frames build on `r2q.training.options.TrainingOptions`, which builds on this.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)


@dataclass(frozen=True)
class MethodInfo:
    """One method as its source states it.

    Attributes:
        module, name: where the class is imported from.
        path: the source file.
        options: an equal of the class's `Options`.
        needs, stochastic, version, leaves_latent: the class attributes of the contract.
        weight_method: whether it is declared as a pure function of one weight.
    """

    module: str
    name: str
    path: Path
    options: type[MethodOptions]
    needs: str = "weights"
    stochastic: bool = False
    version: int = 1
    leaves_latent: bool = False
    weight_method: bool = True


def nearest(word: object, allowed: Iterable[str]) -> str:
    """The end of an error message: the closest allowed word, or all of them when there are few, or nothing."""
    words = [str(w) for w in allowed]
    close = difflib.get_close_matches(str(word), words, n=1, cutoff=0.5)
    if close:
        return f"; nearest valid: {close[0]}"
    return f"; valid: {', '.join(words)}" if 0 < len(words) <= 16 else ""


def built_in_methods() -> list[str]:
    """Names that need no dots: `r2q` and every file of `baselines/`."""
    files = sorted(_package("baselines").glob("*.py"))
    return ["r2q", *(f.stem for f in files if not f.stem.startswith("_"))]


def resolve_method(name: str) -> tuple[str, str]:
    """`(module, class)` of a method: a file of `baselines/`, `r2q`, or a dotted `package.module.Class`.

    Raises ConfigError for a name that leads nowhere.
    """
    info = method_info(name)
    return info.module, info.name


@cache
def method_info(name: str) -> MethodInfo:
    """Everything the config may ask about a method; imports nothing. Raises ConfigError."""
    module, wanted = _where(name)
    path = _source(module)
    if path is None:
        raise ConfigError(f"unknown method {name}{nearest(name, built_in_methods())}")
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"), filename=str(path))
    except SyntaxError as error:
        raise ConfigError(f"method {name}: {path.name} line {error.lineno} is not valid Python ({error.msg})") from None
    classes = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
    if "Options" not in classes:
        raise ConfigError(f"method {name}: {path} has no class Options(MethodOptions)")
    if wanted is not None:
        if wanted not in classes:
            raise ConfigError(f"unknown method {name}: {path} has no class {wanted}{nearest(wanted, classes)}")
        node = classes[wanted]
    else:
        node = _method_class(name, path, classes)
    attributes = _attributes(node)
    return MethodInfo(
        module=module,
        name=node.name,
        path=path,
        options=_options(name, path, classes["Options"]),
        needs=attributes.get("needs", "weights"),
        stochastic=attributes.get("stochastic", False),
        version=attributes.get("version", 1),
        leaves_latent=attributes.get("leaves_latent", False),
        weight_method="WeightMethod" in _bases(node),
    )


def _where(name: str) -> tuple[str, str | None]:
    if name == "r2q":
        return "r2q.quantization.residual", None
    if "." in name:
        module, _, cls = name.rpartition(".")
        return module, cls
    return f"baselines.{name}", None


def _package(name: str) -> Path:
    """Folder of a top-level package, or of one in the working folder; does not import it."""
    spec = importlib.util.find_spec(name)
    locations = list(spec.submodule_search_locations or []) if spec else []
    return Path(locations[0]) if locations else Path(name)


def _source(module: str) -> Path | None:
    """Source file of a module, found without importing its parents (which import torch)."""
    parts = module.split(".")
    if not all(part.isidentifier() for part in parts):
        return None
    base = _package(parts[0]).joinpath(*parts[1:])
    candidates = (base.with_suffix(".py"), base / "__init__.py")
    return next((path for path in candidates if path.is_file()), None)


def _bases(node: ast.ClassDef) -> list[str]:
    return [ast.unparse(base).rpartition(".")[2] for base in node.bases]


def _method_class(name: str, path: Path, classes: dict[str, ast.ClassDef]) -> ast.ClassDef:
    """The one public class with a base that is not the options; bases named ...Method win over helpers."""
    public = [c for c in classes.values() if not c.name.startswith("_") and c.name != "Options" and c.bases]
    named = [c for c in public if any(base.endswith("Method") for base in _bases(c))]
    found = named or public
    if len(found) != 1:
        names = ", ".join(c.name for c in found) or "none"
        raise ConfigError(f"method {name}: {path} must have exactly one public Method class, has {names}")
    return found[0]


def _attributes(node: ast.ClassDef) -> dict[str, Any]:
    """Class attributes that are plain literals."""
    found: dict[str, Any] = {}
    for statement in node.body:
        if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name):
            target, value = statement.targets[0].id, statement.value
        elif isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name) and statement.value:
            target, value = statement.target.id, statement.value
        else:
            continue
        if isinstance(value, ast.Constant):
            found[target] = value.value
    return found


def _options(name: str, path: Path, node: ast.ClassDef) -> type[MethodOptions]:
    """Run the class statement alone. Raises ConfigError when it needs more than typing and pydantic."""
    from r2q.training.options import TrainingOptions  # which builds on this module

    namespace: dict[str, Any] = {
        "MethodOptions": MethodOptions,
        "TrainingOptions": TrainingOptions,
        "typing": typing,
        "pydantic": pydantic,
        "__name__": f"{path.stem}.Options",
        "__builtins__": builtins,
    }
    own = {n.id for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
    own |= {n.arg for n in ast.walk(node) if isinstance(n, ast.arg)}
    for used in ast.walk(node):
        if not isinstance(used, ast.Name) or used.id in namespace or used.id in own or hasattr(builtins, used.id):
            continue
        source = next((m for m in (typing, pydantic) if hasattr(m, used.id)), None)
        if source is None:
            raise ConfigError(
                f"method {name}: class Options in {path} line {used.lineno} uses {used.id}; "
                "it may only use names of typing and pydantic"
            )
        namespace[used.id] = getattr(source, used.id)
    code = compile(ast.Module([node], []), str(path), "exec", dont_inherit=True)
    try:
        exec(code, namespace)
    except Exception as error:
        raise ConfigError(f"method {name}: class Options in {path} cannot be built ({error})") from error
    options = namespace["Options"]
    if not (isinstance(options, type) and issubclass(options, MethodOptions)):
        raise ConfigError(f"method {name}: class Options in {path} must be a subclass of MethodOptions")
    return options
