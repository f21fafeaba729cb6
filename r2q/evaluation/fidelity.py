"""How far a model is from its full-precision original: KL(full || quantized) per token, and equal top-1 tokens.

The verb ``reference`` runs the original (the teacher) once over windows of held-out text and keeps, for every
position, its ``top_k`` likeliest tokens with their log-probabilities and the log of the probability of all others,
the tail; ``evaluate`` runs every unit (the student) over the same tokens. With p of the teacher, q of the student:

    KL = sum over the top k of p (log p - log q)  +  p_tail (log p_tail - log q_tail)

It is exact where top_k is at least the vocabulary. Otherwise it is a lower bound of the whole sum: to put the tokens of
the tail into one bucket is a function of the token, and no function of the data raises a KL (the data-processing
inequality). What is lost is how the tail's probability is spread within it, weighted by p_tail.

Teacher and student go through the same batches and the same code, so that full precision is at exactly 0 and 1 on one
device and in one dtype.
"""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from r2q import config as configuration
from r2q.config import Config, ConfigError, refuse
from r2q.evaluation.adapter import NotFinite
from r2q.evaluation.attempt import attempt, reason
from r2q.evaluation.errors import error_of_mean
from r2q.evaluation.perplexity import cut, window_logits
from r2q.failures import transient
from r2q.files import read_joined, sha256
from r2q.inputs.hub import Hub
from r2q.intact import opened
from r2q.kept import write_atomic
from r2q.models.checks import max_positions, read_tokenizer
from r2q.models.load import load_full
from r2q.plan import Plan, Unit
from r2q.prepare import open_model
from r2q.tokens import Encoder, beyond_positions

CHUNK = 1 << 26  # float32 logits whose tail is summed at once (256 MiB)
FORMAT_VERSION = 1


@dataclass(frozen=True)
class Reference:
    """The teacher's distributions."""

    tokens: torch.Tensor  # int32 ``[windows, window]``; what both models read
    top1: torch.Tensor  # int32 ``[windows, window - 1]``; the likeliest next token
    ids: torch.Tensor  # int32 ``[windows, window - 1, k]``; the k likeliest
    log_probs: torch.Tensor  # float32 of the same shape; theirs, in nats
    # float32 ``[windows, window - 1]``; log of the probability of all other tokens, -inf where there are none
    tail: torch.Tensor
    # where they come from; `reason` is why there are no distributions, where the teacher gave none
    facts: dict[str, Any]
    digest: str = ""  # sha256 of all that, but for what was asked


@dataclass(frozen=True)
class Distance:
    """Of a student to the teacher, by window: mean KL per token (nats) and share of equal top-1 tokens."""

    kl: list[float]
    agreement: list[float]
    tokens: int  # that were predicted

    @property
    def means(self) -> dict[str, tuple[float, float | None]]:
        """(mean, standard error over windows) by metric."""
        by_metric = {"kl": self.kl, "top1_agreement": self.agreement}
        return {name: (math.fsum(v) / len(v), error_of_mean(v)) for name, v in by_metric.items()}


def reference(config_path: str | Path, prepared: str | Path, model: str, out: str | Path) -> None:
    """Run the full-precision ``model`` over the text of ``fidelity`` and write its distributions to ``out``.

    Of a model that is not finite on the text, or does not run on it, the file says so: no unit of it has a distance.

    Raises:
        ConfigError: the config is wrong, has no section ``fidelity`` or no such model; the window exceeds the
            positions.
        ValueError: the text is shorter than a window, damaged, or lacks a column.
        FileNotFoundError: there is no such text, or ``prepared`` is not there.
    """
    config = configuration.load(config_path, model, "fidelity")
    text = config.fidelity
    assert text is not None
    entry, (facts, folder, device) = config.models[model], open_model(config, prepared, model)
    encoder = Encoder(read_tokenizer(folder), entry.add_bos)
    teacher = load_full(str(folder), dtype=entry.dtype)
    refuse(config_path, beyond_positions("fidelity.window", text.window, max_positions(teacher.config), model))
    ids = encoder.encode(read_joined(text, Hub.of(config)))
    try:
        tokens = cut(ids, text.window, text.windows)
    except ValueError as error:
        raise ConfigError(f"fidelity.path: {text.path}, read with the tokenizer of {model}: {error}") from None
    work = partial(distributions, teacher.to(device), tokens, text.top_k, config.limits.batch_size)
    made, lost, _ = attempt(work, NotFinite)
    if lost is not None:
        if transient(lost):
            raise lost
        none = torch.empty(0)
        made = Reference(tokens.int(), none, none, none, none, {})
    settings = text.model_dump(mode="json") | {"model": model, "fingerprint": facts["fingerprint"]}
    settings |= {
        "dtype": str(teacher.dtype).removeprefix("torch."),
        "device": device.type,
        "adds_bos": encoder.adds_bos,
        "asked": Plan(config).asked("reference", Unit(model, "", 0)),
    }
    write(Path(out), made, settings | ({} if lost is None else {"reason": reason(lost)}))
    if lost is not None:
        print(
            f"reference {model}: FAILED: {reason(lost)}; no recipe of it has a distance to full precision", flush=True
        )
        return
    tail = float(made.tail.double().exp().mean())
    print(
        f"reference {model}: {len(tokens)} windows of {text.window} tokens, top {made.ids.shape[-1]}, "
        f"{tail:.3g} of the probability beyond",
        flush=True,
    )


def check_reference(config: Config, model: str, path: str | Path | None) -> Reference | None:
    """What ``reference`` wrote of a model, if the config has a section ``fidelity``.

    Raises:
        ConfigError: it is needed and not given, or is of other settings.
        FileNotFoundError: there is no such file; ValueError: it is damaged.
    """
    if config.fidelity is None:
        return None
    if path is None:
        raise ConfigError("fidelity: evaluate needs what `reference` wrote of the model; give it as --reference")
    teacher = read(path)
    asked: dict[str, Any] = config.fidelity.model_dump(mode="json") | {"model": model}
    for name, value in asked.items():
        if teacher.facts.get(name) != value:
            raise ConfigError(f"{path}: made with {name} {teacher.facts.get(name)}, not {value}; run `reference` again")
    return teacher


def distributions(model: Any, tokens: torch.Tensor, top_k: int, batch_size: int) -> Reference:
    """The teacher's side, of ``tokens`` int64 ``[windows, window]``; raises NotFinite."""
    parts: list[tuple[torch.Tensor, ...]] = []
    for logits in _chunks(model, tokens, batch_size):  # [positions, vocabulary]
        ids = logits.topk(min(top_k, logits.shape[1])).indices
        parts.append((logits.argmax(1).int(), ids.int(), *_bucketed(logits, ids)))
    shape = (len(tokens), tokens.shape[1] - 1)
    top1, ids, log_probs, tail = (torch.cat(part).cpu().unflatten(0, shape) for part in zip(*parts, strict=True))
    return Reference(tokens.int(), top1, ids, log_probs, tail, {})


def distance(model: Any, teacher: Reference, batch_size: int) -> Distance:
    """The student's side; raises NotFinite, also where the teacher was not."""
    if "reason" in teacher.facts:
        raise NotFinite(f"of full precision: {teacher.facts['reason']}")
    tokens = teacher.tokens.long()
    kl, equal = [], []
    flat = [part.flatten(0, 1) for part in (teacher.top1, teacher.ids, teacher.log_probs, teacher.tail)]
    start = 0
    for logits in _chunks(model, tokens, batch_size):
        top1, ids, log_p, tail_p = (part[start : start + len(logits)].to(logits.device) for part in flat)
        start += len(logits)
        log_q, tail_q = _bucketed(logits, ids.long())
        kl.append(bucketed_kl(log_p, tail_p, log_q, tail_q).cpu())
        equal.append((logits.argmax(1) == top1).double().cpu())
    windows = [torch.cat(part).view(len(tokens), -1).mean(1).tolist() for part in (kl, equal)]
    if not all(map(math.isfinite, windows[0])):
        raise NotFinite("fidelity: a window's KL is not finite")
    return Distance(windows[0], windows[1], start)


def bucketed_kl(log_p: torch.Tensor, tail_p: torch.Tensor, log_q: torch.Tensor, tail_q: torch.Tensor) -> torch.Tensor:
    """KL in nats, float64 ``[positions]``, of log-probabilities ``[positions, k]`` and log tails ``[positions]``."""
    log_p, log_q = (torch.cat([a, b[:, None]], 1).double() for a, b in ((log_p, tail_p), (log_q, tail_q)))
    terms = log_p.exp() * (log_p - log_q)
    return terms.masked_fill(log_p == -math.inf, 0).sum(1)  # 0 log 0 = 0


def _chunks(model: Any, tokens: torch.Tensor, batch_size: int) -> Iterator[torch.Tensor]:
    """Logits in float32 ``[positions, vocabulary]`` of consecutive positions of consecutive windows."""
    for row, _ in window_logits(model, tokens, batch_size):
        for part in row.split(max(1, CHUNK // row.shape[1])):
            yield part.float()


def _bucketed(logits: torch.Tensor, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities of ``ids`` ``[positions, k]``, and the log of what the others have ``[positions]``."""
    total = logits.logsumexp(1)
    rest = logits.scatter(1, ids, -math.inf).logsumexp(1)  # not log(1 - sum): a small tail would drown in rounding
    log_probs = logits.gather(1, ids) - total[:, None]
    if not bool(torch.isfinite(log_probs).all()):
        raise NotFinite("fidelity: a log-probability is not finite")
    return log_probs, rest - total


def write(path: Path, made: Reference, facts: dict[str, Any]) -> None:
    """Write a reference; the same bytes for the same values."""
    tensors = {name: getattr(made, name).contiguous() for name in ("tokens", "top1", "ids", "log_probs", "tail")}
    text = json.dumps({"format_version": FORMAT_VERSION, **facts}, sort_keys=True)
    write_atomic(path, save(tensors, {"reference": text}))  # one key: safetensors does not keep an order of several


def read(path: str | Path) -> Reference:
    """What `write` wrote; raises as `opened`."""
    with opened(path, "reference") as file:
        facts = json.loads((file.metadata() or {})["reference"])
        tensors = {name: file.get_tensor(name) for name in ("tokens", "top1", "ids", "log_probs", "tail")}
    facts.pop("asked", None)
    digest = sha256(json.dumps(facts, sort_keys=True), *(tensor.numpy().tobytes() for tensor in tensors.values()))
    return Reference(**tensors, facts=facts, digest=digest)
