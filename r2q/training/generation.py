"""Rows that the full-precision model writes: prompts, each continued to the end-of-text token or the full length.

With ``transformers``, prompts of a batch need not have the same number of tokens: all rows start where the shortest
prompt ends, and a longer prompt's remaining tokens are put in place of sampled ones. So there is no padding inside, and
nothing is masked while text is sampled; a row depends on the seed, the model, the library and the batch size.

With ``vllm``, every row has a seed of its own. What else the rows depend on is the engine's business: it repeats itself
on the same hardware and version (its documentation, "Reproducibility"), and ``VLLM_BATCH_INVARIANT=1``, where a GPU has
it, takes the batch size out of it, too.
"""

import os
from collections.abc import Callable
from importlib import metadata
from typing import Any

import torch
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, StoppingCriteria, StoppingCriteriaList

from r2q.config.texts import Training
from r2q.kept import seed_of
from r2q.tokens import Encoder
from r2q.training.data import Rows
from r2q.training.unfinished import Unfinished

VLLM_BATCHES = 16  # that a file of unfinished rows grows by at once: each time the engine runs empty and fills up again

Continue = Callable[[list[list[int]], list[int], int], list[list[int]]]  # prompts, their numbers, place of the first


def encode_prompts(encoder: Encoder, prompts: list[str], wanted: Training) -> list[list[int]]:
    """Tokens of prompts, cut as the config says; raises ValueError where a prompt leaves no room for an answer."""
    heads = [encoder.encode(prompt)[: wanted.prompt_tokens] for prompt in prompts]
    if any(len(head) >= wanted.length for head in heads):
        raise ValueError(f"training.length: {wanted.length} tokens are no more than the longest prompt; cut prompts")
    return heads


def generated_rows(heads: list[list[int]], wanted: Training, say: Continue, unfinished: Unfinished) -> Rows:
    """Rows of prompts (tokens) in their order; what ``unfinished`` has is taken over, what is new is added to it."""
    if unfinished.rows:
        print(f"teacher-data: {len(unfinished.rows)} rows taken over from an interrupted run", flush=True)
    order = sorted(range(len(heads)), key=lambda number: len(heads[number]))
    size = wanted.batch_size * (VLLM_BATCHES if wanted.engine == "vllm" else 1)
    for start in range(0, len(order), size):
        numbers = order[start : start + size]
        if any(number not in unfinished.rows for number in numbers):
            made = say([heads[number] for number in numbers], numbers, start)
            unfinished.add(dict(zip(numbers, made, strict=True)))
            print(f"teacher-data: {start + len(numbers)}/{len(heads)} rows", flush=True)
    return padded([(unfinished.rows[number], len(head)) for number, head in enumerate(heads)], wanted.length)


def sampling(wanted: Training) -> dict[str, Any]:
    """What either engine is told about sampling; nothing comes from the model's own ``generation_config.json``."""
    return {"temperature": wanted.temperature, "top_p": wanted.top_p if wanted.temperature > 0 else 1.0}


def with_transformers(teacher: Any, end: int | None, wanted: Training) -> Continue:
    """Continue prompts with a model on its device; raises ArithmeticError where its logits are not finite."""
    teacher.generation_config = GenerationConfig()
    how = {"do_sample": True, "top_k": 0, **sampling(wanted)} if wanted.temperature > 0 else {"do_sample": False}

    @torch.no_grad()
    def say(heads: list[list[int]], numbers: list[int], start: int) -> list[list[int]]:
        shortest = min(map(len, heads))
        torch.manual_seed(seed_of(repr((wanted.seed, shortest, start))))
        tokens = torch.tensor([head[:shortest] for head in heads], device=teacher.device)
        prompts = _Prompts(heads, end, teacher.device)
        output = teacher.generate(
            tokens,
            attention_mask=torch.ones_like(tokens),
            max_new_tokens=wanted.length - shortest,
            logits_processor=LogitsProcessorList([prompts]),
            stopping_criteria=StoppingCriteriaList([] if end is None else [_Ended(prompts)]),
            **how,
        )
        if bool(prompts.broken):
            raise ArithmeticError("the logits of a generated token are not finite")
        full = torch.full((len(heads), wanted.length), 0 if end is None else end)  # all rows may have ended early
        full[:, : output.shape[1]] = output.cpu()
        return [_cut(row, len(head), end) for row, head in zip(full.tolist(), heads, strict=True)]

    return say


class _Prompts(LogitsProcessor):
    """Has each row say the rest of its prompt, and then at least one token before it may end.

    Logits that are no numbers are noted (`broken`) and made 0: they cannot be sampled, and the likeliest of them is the
    first. Nothing here waits for the GPU.
    """

    def __init__(self, heads: list[list[int]], end: int | None, device: torch.device) -> None:
        self.end, self.longest = end, max(map(len, heads))
        self.lengths = torch.tensor([len(head) for head in heads], device=device)
        self.tokens = torch.tensor([head + [0] * (self.longest - len(head)) for head in heads], device=device)
        self.broken = torch.zeros((), dtype=torch.bool, device=device)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        place, wrong = input_ids.shape[1], scores.isnan() | scores.isposinf()
        self.broken |= wrong.any()
        scores = scores.masked_fill(wrong, 0.0)
        if self.end is not None and place <= self.longest:
            scores[:, self.end].masked_fill_(self.lengths == place, -torch.inf)
        if place < self.longest:
            given = torch.full_like(scores, -torch.inf).scatter_(1, self.tokens[:, place, None], 0.0)
            scores = torch.where((self.lengths > place)[:, None], given, scores)
        return scores


class _Ended(StoppingCriteria):
    """A row ends with the end-of-text token, unless that is a part of its prompt."""

    def __init__(self, prompts: _Prompts) -> None:
        self.prompts = prompts

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **_: Any) -> torch.Tensor:
        return (input_ids[:, -1] == self.prompts.end) & (self.prompts.lengths < input_ids.shape[1])


def with_vllm(path: str, dtype: str, device: str, end: int | None, wanted: Training) -> Continue:
    """Continue prompts with vLLM, which loads the model itself, on the first GPU that it sees.

    Raises:
        ValueError: the installed vLLM is built for another kind of device.
    """
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # else the order of its work depends on time
    os.environ.setdefault("VLLM_LOGGING_STREAM", "ext://sys.stderr")
    import vllm
    from vllm.platforms import current_platform

    if current_platform.device_type != device:
        raise ValueError(f"device: {device} is asked for, but the installed vllm is for {current_platform.device_type}")
    engine = vllm.LLM(
        model=path,
        dtype=dtype,
        seed=wanted.seed,
        max_model_len=wanted.length,
        max_num_seqs=wanted.batch_size,
        enable_prefix_caching=False,  # else a row depends on the rows before it, and a resumed run differs
        generation_config="vllm",  # not the model's, which may name other tokens to stop at
    )

    def say(heads: list[list[int]], numbers: list[int], start: int) -> list[list[int]]:
        settings = [
            vllm.SamplingParams(
                **sampling(wanted),
                max_tokens=wanted.length - len(head),
                min_tokens=1,
                seed=seed_of(repr((wanted.seed, number))),
                stop_token_ids=[] if end is None else [end],
                detokenize=False,
            )
            for number, head in zip(numbers, heads, strict=True)
        ]
        outputs = engine.generate([{"prompt_token_ids": head} for head in heads], settings, use_tqdm=False)
        return [
            _cut([*head, *output.outputs[0].token_ids], len(head), end)
            for head, output in zip(heads, outputs, strict=True)
        ]

    return say


def vllm_facts() -> dict[str, str]:
    """Version of the installed vLLM, whose builds for other devices have other names, and whether it is told to batch
    without an effect on numbers."""
    name = metadata.packages_distributions()["vllm"][0]
    return {"vllm": f"{name} {metadata.version(name)}", "batch_invariant": os.environ.get("VLLM_BATCH_INVARIANT", "0")}


def _cut(row: list[int], start: int, end: int | None) -> list[int]:
    """Without what stands behind the end-of-text token of the answer, which begins at ``start``."""
    return row[: row.index(end, start) + 1] if end in row[start:] else row


def padded(made: list[tuple[list[int], int]], length: int) -> Rows:
    """Rows out of (tokens, number of them that are the prompt)."""
    tokens = torch.zeros(len(made), length, dtype=torch.int64)
    for i, (row, _) in enumerate(made):
        tokens[i, : len(row)] = torch.tensor(row)
    return Rows(tokens, torch.tensor([start for _, start in made]), torch.tensor([len(row) for row, _ in made]))
