"""The model card, README.md, of a folder of weights: what they were made of and how, their size, how to load them."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import metadata_load

from r2q.config import HUB_GGUF, Model
from r2q.records import Facts

CARD = "README.md"
LICENCE = ("license", "license_name", "license_link")  # of a card's front matter, as the hub spells them
STATED = ("method", "granularity", "bits", "seed")  # of a recipe, in words
CITATION = """\
@misc{r2q,
  title = {R2Q: Residual Refinement Quantization},
  note = {arXiv 2511.21736},
  year = {2025}
}
@software{r2q_benchmark,
  title = {R2Q: a reproducible benchmark for 2-bit weight quantization},
  author = {{R2Q benchmark contributors}},
  license = {Apache-2.0}
}"""
USE = """\
```python
import r2q  # before transformers reads the folder: without it the packed layers would be left empty
from transformers import AutoModelForCausalLM, AutoTokenizer

model, tokenizer = AutoModelForCausalLM.from_pretrained(FOLDER), AutoTokenizer.from_pretrained(FOLDER)
```"""


def describe_source(entry: Model, folder: Path) -> dict[str, str]:
    """What a card says of the base model: its id on the hub or its name, the revision, the licence that it states."""
    # of a file here the name alone: its folder is a matter of one machine
    hub = HUB_GGUF.fullmatch(entry.path) if entry.kind == "hub_gguf" else None
    base = entry.path if entry.kind in ("hub", "pypi") else hub[1] if hub else Path(entry.path).name
    licence = {name: value for name, value in stated(folder).items() if name in LICENCE}
    return {"base_model": base, **({"revision": entry.revision} if entry.revision else {}), **licence}


def stated(folder: Path) -> dict[str, str]:
    """Base model and licence that the card of a folder states in its front matter; empty without one."""
    try:
        front = metadata_load(folder / CARD) or {}
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return {name: str(front[name]) for name in ("base_model", *LICENCE) if front.get(name)}


def card(
    recipe: Mapping[str, Any], bits: float, weights: int, size: int, about: Mapping[str, Any], use: str = USE
) -> str:
    """The text of a card.

    Args:
        recipe: name, method, granularity, bits, seed and options, as far as there are any.
        bits: bits a weight of the quantized layers, with scales.
        weights: in the quantized layers.
        size: bytes of the weight files.
        about: what :func:`describe_source` says; `facts` of the recipe; `errors` of weights and outputs by name.
        use: Markdown that says how to load it.
    """
    front = {name: about[name] for name in ("base_model", *LICENCE) if name in about}
    front |= {"library_name": "transformers", "pipeline_tag": "text-generation"}
    front["tags"] = ["quantized", f"{recipe.get('bits', '?')}-bit", "r2q"]
    base, name = about.get("base_model", "a model"), recipe.get("name", "quantized")
    facts = about.get("facts", Facts())
    levels = f"{facts.label}{f' within {facts.frame}' if facts.frame else ''}" if facts.label else ""
    chosen = {key: value for key, value in recipe.get("options", {}).items() if value is not None}
    licence = ", ".join(about[key] for key in LICENCE if key in about)
    rows = {
        "base model": base + (f", revision {about['revision']}" if "revision" in about else ""),
        "recipe": ", ".join(f"{key} {recipe[key]}" for key in STATED if key in recipe),
        "options": f"`{json.dumps(chosen, sort_keys=True)}`" if chosen else "",
        "quantizer": levels,
        "bits a weight": f"{bits:.4g}, scales included, in {weights:,} quantized weights",
        "weight files": f"{size:,} bytes",
        **{name: f"{value:.4g}" for name, value in about.get("errors", {}).items()},
        "scores": "not known when this was written; where it was evaluated, they are in `evaluation.json` beside it",
        "licence": f"{licence}, as the base model states it"
        if licence
        else "none stated beside the base model: ask there",
    }
    table = "\n".join(f"| {key} | {value.replace('|', chr(92) + '|')} |" for key, value in rows.items() if value)
    return (
        f"---\n{yaml.safe_dump(front, sort_keys=False, allow_unicode=True)}---\n\n# {base}: {name}\n\n"
        f"Weights quantized by R2Q, a benchmark of 2-bit weight quantization.\n\n| | |\n|---|---|\n{table}\n\n"
        f"## Use\n\n{use}\n\n## Citation\n\n```bibtex\n{CITATION}\n```\n"
    )


def mean_errors(layers: list[dict[str, Any]]) -> dict[str, float]:
    """Relative squared errors, means over all weights: of weights, and of outputs where those were measured."""
    errors = {
        "mean relative squared error of the weights": "relative_error",
        "mean relative squared error of the layers' outputs, on held-out text": "output_error",
    }
    means = {}
    for words, field in errors.items():
        pairs = [(layer[field], math.prod(layer["shape"])) for layer in layers if layer.get(field) is not None]
        if pairs and len(pairs) == len(layers):
            means[words] = sum(error * weights for error, weights in pairs) / sum(weights for _, weights in pairs)
    return means
