"""What may be asked for: closed models, checked at once, without importing torch or transformers.

`load(path)` and `parse(dict, source)` return a frozen `Config` or raise ConfigError with one sentence per problem. The
JSON schema for editors and the table of keys in config/README.md are generated from these models (`r2q schema`).

    base       the error, closed models, kinds of values
    sections   models, recipes, tasks, limits, figures        texts   perplexity, calibration, training
    run        Config: all of it, and what follows from it    facts   what a recipe is, whatever its name
    methods    what a method says of itself                   quantizer   options that name another method
    consistency, leaks, lattice, machine   what no single key can say
    problems   findings as sentences                          strict_yaml, schema
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from r2q.config.base import ConfigError, MethodOptions, group_size, nearest, refuse, some
from r2q.config.consistency import find_problems
from r2q.config.facts import describe_recipe
from r2q.config.lattice import lattice_lacks, lattice_problems
from r2q.config.leaks import leaks
from r2q.config.machine import machine_problems
from r2q.config.methods import (
    FACTS,
    Needs,
    built_in_methods,
    forget,
    import_method,
    method_info,
    methods_named,
    own_step,
)  # fmt: skip
from r2q.config.problems import describe, unusable_values
from r2q.config.quantizer import NOT_ASKED, QuantizerOptions
from r2q.config.run import Config
from r2q.config.sections import HUB_GGUF, PYPI, Model
from r2q.config.strict_yaml import read_yaml
from r2q.config.texts import CALIBRATION_PRESETS, HUB_TEXT, TEXT_FILE, Calibration
from r2q.kept import here_or_shipped


def load(path: str | Path, model: str | None = None, section: str | None = None) -> Config:
    """Read and check a config file, which must have this model and this section, where a verb is about one.

    A config, or a model of one, that is not in the working folder may be one that comes with r2q.

    Raises ConfigError naming file, key and nearest valid key for every problem.
    """
    config = parse(with_shipped_models(read_yaml(here_or_shipped(path))), source=str(path))
    if section is not None and getattr(config, section) is None:
        raise ConfigError(f"{path}: {section}: this key is required here; name at least its path")
    if model is not None and model not in config.models:
        raise ConfigError(f"{path}: models: unknown model {model}{nearest(model, config.models)}")
    return config


def load_to_run(path: str | Path) -> Config:
    """The same, and no text that is evaluated is also learned from. Raises ConfigError."""
    config = load(path)
    refuse(path, leaks(config))
    return config


def with_shipped_models(config: dict[str, Any]) -> dict[str, Any]:
    """The models that come with this repository, also in another working folder than the repository's."""
    models = config.get("models")
    for entry in models.values() if isinstance(models, dict) else []:
        path = entry.get("path") if isinstance(entry, dict) else None
        if isinstance(path, str) and path.startswith("mini/"):
            entry["path"] = str(here_or_shipped(path))
    return config


def parse(data: Mapping[str, Any], source: str) -> Config:
    """Check a config that is already plain data; `source` names it in messages. Raises ConfigError."""
    refuse(source, unusable_values(data))
    try:
        config = Config.model_validate(data)
    except ValidationError as error:
        refuse(source, describe(error, Config))
        raise
    refuse(source, find_problems(config))
    return config
