"""The verb `check`: what would make a model's evaluation fail, found at the start of a run.

Texts are tokenized and tasks loaded as the evaluation will do; no weight is read. What is found here stops the run. The
evaluation itself still makes a failed row of what it meets.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from r2q import config as configuration
from r2q.config import Config, ConfigError, refuse
from r2q.evaluation.session import silence
from r2q.evaluation.tasks import TaskSet, load_tasks
from r2q.failures import one_line
from r2q.files import read_joined
from r2q.inputs.hub import Hub
from r2q.kept import write_json
from r2q.models.checks import max_positions, read_config, read_tokenizer
from r2q.models.source import model_folder
from r2q.tokens import Encoder, beyond_positions

GENERATED = 256  # tokens where a task names no number: lm-eval's default


def check(config_path: str | Path, model: str, out: str | Path) -> None:
    """Hold texts and tasks of a config against a model; write to `out` (JSON) that nothing stands in the way.

    Raises:
        ConfigError: one sentence per problem, with key, text or task, and model; nothing is written.
    """
    config = configuration.load(config_path, model)
    silence()
    entry = config.models[model]
    folder = model_folder(entry)
    encoder = Encoder(read_tokenizer(folder), entry.add_bos)
    positions = max_positions(read_config(folder))
    models = {entry.path for entry in config.models.values() if entry.kind == "hub"}  # `prepare` has read them
    problems = list(Hub.of(config).check(without=models))
    if not problems:
        problems += text_problems(config, model, encoder, positions)
        problems += _task_problems(config, model, encoder, positions)
    refuse(config_path, problems)
    write_json(out, {"model": model, "positions": positions})
    print(f"check {model}: {len(config.perplexity)} texts and {len(config.tasks)} tasks can be evaluated", flush=True)


def text_problems(config: Config, model: str, encoder: Encoder, positions: int | None) -> Iterator[str]:
    """Windows longer than the model's positions, texts that cannot be read or are shorter than one window."""
    hub = Hub.of(config)
    texts: dict[str, Any] = {f"perplexity.{name}": text for name, text in config.perplexity.items()}
    if config.fidelity is not None:
        texts["fidelity"] = config.fidelity
    for key, text in texts.items():
        if problems := beyond_positions(f"{key}.window", text.window, positions, model):
            yield from problems
            continue
        try:
            count = len(encoder.encode(read_joined(text, hub)))
        except Exception as error:  # a hub's library raises what it likes
            yield f"{key}.path: {text.path} cannot be read: {one_line(error)}"
            continue
        if count < text.window:
            few = f"{count} tokens with the tokenizer of model {model}, fewer than one window of {text.window}"
            yield f"{key}.path: {text.path} has {few}"


def _task_problems(config: Config, model: str, encoder: Encoder, positions: int | None) -> Iterator[str]:
    """Tasks that cannot be loaded, or that a model cannot be asked."""
    if not config.tasks:
        return
    try:
        tasks = load_tasks(config)
    except Exception:  # which one is it?
        problems = list(_unloadable(config))
        yield from problems
        if problems:
            return
        raise  # only together, such as a task that is named twice
    yield from asked_problems(tasks, model, encoder.tokenizer, positions)


def _unloadable(config: Config) -> Iterator[str]:
    for name, entry in config.tasks.items():
        try:
            load_tasks(config.model_copy(update={"tasks": {name: entry}}))
        except ConfigError as error:
            yield str(error)
        except Exception as error:
            yield f"tasks.{name}: cannot be loaded: {one_line(error)}"


def asked_problems(tasks: TaskSet, model: str, tokenizer: Any, positions: int | None) -> Iterator[str]:
    """Generations longer than the model's positions, texts that no token can stand before or end, and tasks that
    lm-eval asks no such model, or only where somebody consents."""
    from lm_eval.models.utils import normalize_gen_kwargs

    bare = tokenizer.bos_token_id is None and tokenizer.eos_token_id is None
    for name, task in tasks.dictionary["tasks"].items():
        kind = task.OUTPUT_TYPE
        if getattr(task, "UNSAFE_CODE", False):
            yield f"tasks.{name}: runs code that a model wrote (unsafe_code), which is not done here"
        if getattr(task, "MULTIMODAL", False):
            yield f"tasks.{name}: shows pictures or plays sounds, but model {model} reads text alone"
        longest = normalize_gen_kwargs(task.get_config("generation_kwargs") or {}, GENERATED)["max_gen_toks"]
        if kind == "generate_until" and positions is not None and longest >= positions:
            yield (
                f"tasks.{name}: generates up to {longest} tokens (max_gen_toks), "
                f"but model {model} has only {positions} positions"
            )
        if kind == "loglikelihood_rolling" and bare:
            yield (
                f"tasks.{name}: scores whole texts, but the tokenizer of model {model} has no begin- and no "
                "end-of-text token to put before one"
            )
        if kind == "generate_until" and tokenizer.eos_token_id is None:
            yield f"tasks.{name}: generates text, but the tokenizer of model {model} has no end-of-text token"
