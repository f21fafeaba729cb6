"""What a recipe is: it follows from method, quantizer, options and start, never from the recipe's name."""

from typing import Any, Literal, get_args, get_origin

from r2q.config.base import MethodOptions, alternatives
from r2q.config.methods import MethodInfo, method_info
from r2q.config.quantizer import QuantizerOptions
from r2q.config.run import Config
from r2q.records import Facts

STARTS = {"bitdistiller_clip": "clipped"}  # what a start is called in a label, where not by its own


def describe_recipe(config: Config, name: str) -> Facts:
    """What recipe `name` of a config is; the same for every name that it could have."""
    outer, options = method_info(config.recipes[name].method), config.options_of(name)
    inner, chosen = outer, options
    if isinstance(options, QuantizerOptions):
        inner = method_info(options.quantizer)
        chosen = inner.options.read(options.quantizer_options)
    words, settings = _differences(chosen)
    start_name = getattr(options, "start", None) if outer.needs == "training" else None
    start = _named(describe_recipe(config, start_name)) if start_name is not None else None
    label = "-".join([_short(config, inner), *words])
    if start is not None:
        label += f" ({STARTS.get(start, start)} start)"
    frame = outer.label if inner is not outer else None
    control = outer.control or inner.control
    return Facts(frame, inner.label, "-".join(words), start, label, control, outer.needs, settings)


def _named(facts: Facts) -> str:
    """A recipe as a start: its frame, if it has one, and its quantizer: `gptq-r2q`."""
    return f"{facts.frame}-{facts.label}" if facts.frame else facts.label


def _short(config: Config, info: MethodInfo) -> str:
    """A class without its module, unless another one of that name chooses the levels of some recipe."""
    short = info.label.rpartition(".")[2]
    if short == info.label:
        return short
    rivals = {config.methods_of(name)[-1].label for name in config.recipes} - {info.label}
    return info.label if any(rival.endswith(f".{short}") for rival in rivals) else short


def _differences(options: MethodOptions) -> tuple[list[str], dict[str, Any]]:
    """Choices that are not the default, as words; other values that are not, by name.

    A switch (`none` and one more, or true and false) gives its own name, a choice among several its value.
    """
    words, settings, written = [], {}, options.model_dump(mode="json")
    for name, declared in type(options).model_fields.items():
        value = getattr(options, name)
        if value == declared.get_default(call_default_factory=True):
            continue
        kinds = alternatives(declared.annotation)
        choices = [choice for kind in kinds if get_origin(kind) is Literal for choice in get_args(kind)]
        if isinstance(value, bool):
            words.append(name if value else f"no-{name}")
        elif value in choices:
            words.append(name if len(choices) == 2 and "none" in choices else str(value))
        else:
            settings[name] = written[name]
    return words, settings
