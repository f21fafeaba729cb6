"""What every part of a config is made of: the error, closed models, checked kinds of values."""

import difflib
import json
from collections.abc import Iterable, Sequence
from types import NoneType, UnionType
from typing import Annotated, Any, ClassVar, Self, Union, get_args, get_origin

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

NAME = r"^[A-Za-z0-9_][A-Za-z0-9._-]*$"
SHA256 = r"^[0-9a-f]{64}$"
GRANULARITY = r"^(g[1-9][0-9]{0,8}|channel|tensor)$"
DEVICE = r"^(auto|cpu|cuda(:[0-9]{1,3})?)$"


def group_size(granularity: str | None) -> int | None:
    """The size in `g<size>`; None for the other granularities."""
    return int(granularity[1:]) if granularity is not None and granularity.startswith("g") else None


class ConfigError(ValueError):
    """Something asked for cannot be; the message has one sentence per problem."""


def nearest(word: object, allowed: Iterable[str]) -> str:
    """The end of an error message: the closest allowed word, or all of them when there are few, or nothing."""
    words = [str(w) for w in allowed]
    close = difflib.get_close_matches(str(word), words, n=1, cutoff=0.5)
    if close:
        return f"; nearest valid: {close[0]}"
    return f"; valid: {', '.join(words)}" if 0 < len(words) <= 16 else ""


def some(names: Sequence[object], count: int = 3) -> str:
    """The first few of them, and how many more there are."""
    return ", ".join(map(str, names[:count])) + (f" and {len(names) - count} more" if len(names) > count else "")


def spelt(value: object) -> str:
    """A value as a config has it: `true`, `null`."""
    return value if isinstance(value, str) else json.dumps(value, default=str)


def refuse(source: object, problems: Iterable[str]) -> None:
    """Raise ConfigError where there are problems; `source`, a config's path, stands before each."""
    if text := "\n".join(f"{source}: {problem}" for problem in problems):
        raise ConfigError(text)


class Closed(BaseModel):
    """No unknown keys, no changes, no conversions ('30' is no number, true is not 1), nothing infinite."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False, protected_namespaces=())

    # by key, another one and its only value beside which the first counts; else it is refused
    counts_with: ClassVar[dict[str, tuple[str, Any]]] = {}

    @model_validator(mode="after")
    def _check_effects(self) -> Self:
        for name, (other, value) in self.counts_with.items():
            default = type(self).model_fields[name].get_default(call_default_factory=True)
            if getattr(self, other) != value and getattr(self, name) != default:
                raise ValueError(f"{name}: counts with {other}: {spelt(value)} alone")
        return self


class Section(Closed):
    """A part of a config. The docstring below a key is its description in the JSON schema and in config/README.md."""

    model_config = ConfigDict(use_attribute_docstrings=True)


class MethodOptions(Closed):
    """Base of every method's options. In a module that does not import torch, they are checked in milliseconds."""

    @classmethod
    def read(cls, values: Any) -> Self:
        """Options as a config or a record has them: a list may be a tuple, a text a path, a date, or of an enum."""
        return cls.model_validate_json(json.dumps(values, default=str))

    def problems(self, recipe: Any, config: Any) -> list[str]:
        """What these options cannot do in a recipe (`r2q.config.sections.Recipe`) of a run (`r2q.config.Config`).

        One sentence for each, starting with the option's name, or with `granularity` or `bits` of the recipe.
        """
        return []


def alternatives(annotation: Any) -> list[Any]:
    """What an annotation allows: the parts of a union, without `Annotated` and None."""
    if get_origin(annotation) is Annotated:
        return alternatives(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        return [kind for part in get_args(annotation) for kind in alternatives(part)]
    return [] if annotation is NoneType else [annotation]


def _fits(path: str) -> str:
    """Raise ValueError where a part of a path is longer than file systems take."""
    if any(len(part.encode()) > 255 for part in path.split("/")) or len(path.encode()) > 4000:
        raise ValueError("a path may have 4000 bytes, and each part of it 255")
    return path


def null_is_empty(kind: Any) -> BeforeValidator:
    """`key:` with nothing after it means `key: {}`."""
    return BeforeValidator(lambda value: {} if value is None else value, json_schema_input_type=kind)


Name = Annotated[str, Field(pattern=NAME, max_length=100)]  # of files and folders, with other names beside it
PathText = Annotated[str, Field(min_length=1), AfterValidator(_fits)]
Positive = Annotated[int, Field(ge=1, le=10**9)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
Seeds = Annotated[list[Seed], Field(min_length=1, max_length=1000)]
Tokens = Annotated[int, Field(ge=2, le=2**20)]
