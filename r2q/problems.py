"""Pydantic's findings as sentences: the key, what is wrong, what is allowed."""

from __future__ import annotations

import types
import typing
from typing import Any

from pydantic import BaseModel, ValidationError

from r2q.options import nearest

NAME = r"^[A-Za-z0-9_][A-Za-z0-9._-]*$"
GRANULARITY = r"^(g[1-9][0-9]*|channel|tensor)$"
DEVICE = r"^(auto|cpu|cuda(:[0-9]+)?)$"
SHA256 = r"^[0-9a-f]{64}$"
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
        key = ".".join(str(part) for part in where) or "config"
        allowed = _keys(model, tuple(where[:-1]))
        kind, context = item["type"], item.get("ctx", {})
        if kind == "extra_forbidden":
            lines.append(f"{key}: unknown key{nearest(where[-1], allowed) or '; it takes none'}")
        elif kind == "missing":
            lines.append(f"{key}: this key is required")
        elif kind == "string_pattern_mismatch":
            lines.append(f"{key}: {item['input']!r} must be {_IN_WORDS.get(context['pattern'], context['pattern'])}")
        elif kind == "literal_error":
            close = nearest(item["input"], [w.strip("' ") for w in context["expected"].replace(" or ", ",").split(",")])
            lines.append(f"{key}: {item['input']!r} is not allowed{close}")
        else:
            lines.append(f"{key}: {item['msg'][:1].lower()}{item['msg'][1:]}, got {_short(item['input'])}")
    return lines


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _keys(model: type[BaseModel], where: tuple[int | str, ...]) -> list[str]:
    """Valid keys of the closed model at a place; empty where the keys are free."""
    current: Any = model
    for part in where:
        current = _model_or_values(current)
        if isinstance(current, type) and issubclass(current, BaseModel):
            if part not in current.model_fields:
                return []
            current = current.model_fields[str(part)].annotation
        elif typing.get_origin(current) in (dict, list):
            current = typing.get_args(current)[-1]
        else:
            return []
    current = _model_or_values(current)
    return list(current.model_fields) if isinstance(current, type) and issubclass(current, BaseModel) else []


def _model_or_values(annotation: Any) -> Any:
    """Strip Annotated and `| None`."""
    while True:
        origin = typing.get_origin(annotation)
        if origin is typing.Annotated:
            annotation = typing.get_args(annotation)[0]
        elif origin in (typing.Union, types.UnionType):
            rest = [a for a in typing.get_args(annotation) if a is not type(None)]
            annotation = rest[0]
        else:
            return annotation
