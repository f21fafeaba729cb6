"""Pydantic's findings as sentences: the key, what is wrong, what is allowed."""

import math
import typing
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel, ValidationError

from r2q.config.base import DEVICE, GRANULARITY, NAME, SHA256, alternatives, nearest

_IN_WORDS = {
    NAME: "letters, digits and . _ - (not . or - first)",
    GRANULARITY: "g<size> such as g64, channel or tensor",
    DEVICE: "auto, cpu, cuda or cuda:<number>",
    SHA256: "64 hex digits in lower case",
}


def describe(error: ValidationError, model: type[BaseModel]) -> list[str]:
    """One sentence per problem, each starting with the dotted key."""
    lines: list[str] = []
    for item in error.errors(include_url=False):
        where = [part for part in item["loc"] if part != "[key]"]
        key = ".".join(_short(part, str) for part in where) or "config"
        allowed = _keys(model, tuple(where[:-1]))
        kind, context = item["type"], item.get("ctx", {})
        if kind == "extra_forbidden":
            lines.append(f"{key}: unknown key{nearest(where[-1], allowed) or '; it takes none'}")
        elif kind == "missing":
            lines.append(f"{key}: this key is required")
        elif kind == "string_pattern_mismatch":
            lines.append(
                f"{key}: {_short(item['input'])} must be {_IN_WORDS.get(context['pattern'], context['pattern'])}"
            )
        elif kind == "literal_error":
            close = nearest(item["input"], [w.strip("' ") for w in context["expected"].replace(" or ", ",").split(",")])
            lines.append(f"{key}: {_short(item['input'])} is not allowed{close}")
        elif kind == "none_required":
            lines.append(f"{key}: {_short(item['input'])} is not allowed; valid: null")
        elif kind == "value_error" and not isinstance(item["input"], str):  # of several keys at once, which it names
            lines.append(".".join([*map(str, where), str(context["error"])]))
        else:
            message = str(context["error"]) if kind == "value_error" else item["msg"]
            lines.append(f"{key}: {message[:1].lower()}{message[1:]}, got {_short(item['input'])}")
    return lines


def unusable_values(value: Any, key: str = "") -> Iterator[str]:
    """A sentence for every number that is not finite and every text that cannot be written to a file."""
    if isinstance(value, float) and not math.isfinite(value):
        yield f"{key or 'config'}: {value} is not a finite number"
    elif isinstance(value, str):
        if "\0" in value or any("\ud800" <= letter <= "\udfff" for letter in value):
            what = f"{_short(value)!a} has a null character or half a surrogate pair, which no file can hold"
            yield f"{key or 'config'}: {what}"
    elif isinstance(value, Mapping):
        for name, part in value.items():
            yield from unusable_values(name, f"{key}.<key>".lstrip("."))
            yield from unusable_values(
                part, f"{key}.{ascii(name)[1:-1] if isinstance(name, str) else name}".lstrip(".")
            )
    elif isinstance(value, list | tuple):
        for number, part in enumerate(value):
            yield from unusable_values(part, f"{key}.{number}".lstrip("."))


def _short(value: object, form: Any = repr) -> str:
    text = form(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _keys(model: type[BaseModel], where: tuple[int | str, ...]) -> list[str]:
    """Valid keys of the closed model at a place; empty where the keys are free."""
    current: Any = model
    for part in where:
        current = alternatives(current)[0]
        if isinstance(current, type) and issubclass(current, BaseModel):
            if part not in current.model_fields:
                return []
            current = current.model_fields[str(part)].annotation
        elif typing.get_origin(current) in (dict, list):
            current = typing.get_args(current)[-1]
        else:
            return []
    current = alternatives(current)[0]
    return list(current.model_fields) if isinstance(current, type) and issubclass(current, BaseModel) else []
