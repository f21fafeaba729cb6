"""lm-eval's model interface over one loaded model: the same numbers as lm-eval's own, for less work.

Against `lm_eval.models.huggingface.HFLM`:

- requests are encoded once per process (`Encoder`);
- logits are computed only where a continuation stands (`rows`);
- log-probabilities are taken in float32, whatever the dtype of the model;
- a value that is not finite stops the evaluation instead of becoming choice 0.

The tests hold both against each other.
"""

import inspect
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import normalize_gen_kwargs
from torch.nn.utils.rnn import pad_sequence
from transformers import LogitsProcessor, LogitsProcessorList

from r2q.evaluation.rows import Request, Row, arrange, rows_at_once, split_long
from r2q.models.checks import max_positions
from r2q.tokens import Encoder


class NotFinite(ArithmeticError):
    """The model gave NaN or infinity where a score needs a number."""


def encode(encoder: Encoder, requests: Sequence[Any]) -> None:
    """Encode all texts of lm-eval's requests in one call of the tokenizer; the encoder then knows them."""
    texts: list[str] = []
    for request in requests:
        context, *rest = request.args
        if request.request_type != "loglikelihood":
            texts.append(context)
        elif context:
            texts += [context.rstrip(), context + rest[0]]  # as TemplateLM._encode_pair does
    encoder.encode_all(texts)


class Scorer(HFLM):
    """A model as lm-eval sees it.

    Args:
        model: a causal language model, already on its device.
        encoder: tokenizer with the rule for the begin-of-text token.
        batch_size: requests a batch; fixed.

    Tasks come one after the other, so that the numbers of one do not depend on its neighbours. Of requests that exceed
    the model's positions the context is cut off in front, and a continuation longer than all of them scored in pieces.

    Rows are padded behind, where causal attention does not look. One case remains: sparse attention by an indexer
    (DeepSeek-V3.2, GLM-5) chooses by the length of the row among scores that are exactly equal, all heads being cut off
    at 0. It takes rows longer than `index_topk`; random models of 32 index heads have none, of one or two many.
    """

    def __init__(self, model: Any, encoder: Encoder, batch_size: int) -> None:
        self.encoder = encoder
        super().__init__(
            pretrained=model,
            tokenizer=encoder.tokenizer,
            batch_size=batch_size,
            max_length=max_positions(model.config),
            device=str(model.device),
            softmax_dtype="float32",
            add_bos_token=encoder.add_bos,
        )
        self.task = ""  # the one whose requests come next
        self.truncated: Counter[str] = Counter()  # requests that exceed the positions, by task
        self._keeps = "logits_to_keep" in inspect.signature(model.forward).parameters

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, left_truncate_len: int | None = None, **_: Any
    ) -> list[int]:
        """Token ids; `add_special_tokens=None` follows the encoder's rule."""
        tokens = self.encoder.encode(string, add_special_tokens is not False)
        return tokens[-left_truncate_len:] if left_truncate_len else tokens

    def tok_batch_encode(
        self, strings: Sequence[str], padding_side: str = "left", left_truncate_len: int | None = None, **_: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(ids, mask), each [strings, longest]."""
        rows = [torch.tensor(self.tok_encode(s, left_truncate_len=left_truncate_len)) for s in strings]
        if left_truncate_len:
            self.truncated[self.task] += sum(len(self.tok_encode(s)) > left_truncate_len for s in strings)
        pad = self.tokenizer.pad_token_id
        ids = pad_sequence(rows, batch_first=True, padding_value=pad, padding_side=padding_side)
        mask = pad_sequence([torch.ones_like(r) for r in rows], batch_first=True, padding_side=padding_side)
        return ids, mask

    @property
    def prefix_token_id(self) -> int:
        """What stands before a text that nothing stands before; ValueError where the tokenizer has no such token."""
        if super().prefix_token_id is None:
            raise ValueError("the tokenizer has no begin- and no end-of-text token to put before a text")
        return super().prefix_token_id

    @property
    def eot_token_id(self) -> int:
        """What ends a generated text; ValueError where the tokenizer has no such token."""
        if super().eot_token_id is None:
            raise ValueError("the tokenizer has no end-of-text token to end a generated text")
        return super().eot_token_id

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        """(log-likelihood in nats, whether greedy decoding gives it) of each continuation."""
        encode(self.encoder, requests)
        return super().loglikelihood(requests, disable_tqdm=True)

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = True) -> list[float]:
        """Log-likelihood in nats of each whole text, in disjoint windows."""
        encode(self.encoder, requests)
        return super().loglikelihood_rolling(requests, disable_tqdm=True)

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = True) -> list[str]:
        """Greedy (or as the task says) continuation of each prompt."""
        asked = (normalize_gen_kwargs(request.args[1], self.max_gen_toks) for request in requests)
        longest = max((options["max_gen_toks"] for options in asked), default=0)
        if longest >= self.max_length:
            raise ValueError(
                f"generates up to {longest} tokens (max_gen_toks), the model has {self.max_length} positions"
            )
        encode(self.encoder, requests)
        return super().generate_until(requests, disable_tqdm=True)

    def _model_generate(self, context: torch.Tensor, max_length: int, stop: list[str], **options: Any) -> torch.Tensor:
        processors = LogitsProcessorList([_RefuseNaN(self.task)])
        return super()._model_generate(context, max_length, stop, logits_processor=processors, **options)

    @torch.no_grad()
    def _loglikelihood_tokens(
        self, requests: Sequence[Request], disable_tqdm: bool = True, override_bs: int | None = None
    ) -> list[tuple[float, bool]]:
        """(log-likelihood, whether greedy decoding gives it) of each continuation; see `rows`."""
        for _, context, continuation in requests:
            if not context or not continuation:
                raise ValueError(f"task {self.task}: a request has an empty context or an empty continuation")
            self.truncated[self.task] += len(context) + len(continuation) > self.max_length + 1
        pieces, owners = split_long(requests, self.max_length)
        sums, greedy = [0.0] * len(requests), [True] * len(requests)
        for batch in self._batches(arrange(pieces, self.max_length)):
            for piece, value, is_greedy in self._read(batch, pieces):
                sums[owners[piece]] += value
                greedy[owners[piece]] &= is_greedy
        if not all(map(math.isfinite, sums)):
            raise NotFinite(f"task {self.task}: a log-likelihood is not finite")
        return list(zip(sums, greedy, strict=True))

    def _batches(self, rows: list[Row]) -> Iterator[list[Row]]:
        """Cut rows, longest first, into batches."""
        start = 0
        while start < len(rows):
            longest = len(rows[start].tokens)
            size = rows_at_once(self.batch_size, longest * self.model.config.get_text_config().vocab_size)
            yield rows[start : start + size]
            start += size

    def _read(self, batch: list[Row], requests: Sequence[Request]) -> Iterator[tuple[int, float, bool]]:
        """(number, log-likelihood, whether greedy decoding gives it) of every request of a batch."""
        longest, first = len(batch[0].tokens), min(row.first_read for row in batch)
        ids = pad_sequence([torch.tensor(row.tokens) for row in batch], batch_first=True).to(self.device)
        if self._keeps:
            logits = self.model(input_ids=ids, use_cache=False, logits_to_keep=longest - first).logits
        else:
            logits = self.model(input_ids=ids, use_cache=False).logits[:, first:]  # [rows, longest - first, vocab]
        reads = [(place, number, positions) for place, row in enumerate(batch) for number, positions in row.reads]
        place = torch.tensor([place for place, _, positions in reads for _ in positions])
        position = torch.tensor([position - first for _, _, positions in reads for position in positions])
        target = torch.tensor([token for _, number, _ in reads for token in requests[number][2]], device=self.device)
        segment = torch.tensor([i for i, (_, _, positions) in enumerate(reads) for _ in positions])
        chosen = logits[place.to(self.device), position.to(self.device)].float()  # [tokens, vocab]
        gained = (chosen.gather(1, target[:, None])[:, 0] - chosen.logsumexp(1)).double().cpu()  # [tokens]
        wrong = (chosen.argmax(1) != target).long().cpu()
        sums = torch.zeros(len(reads), dtype=torch.float64).index_add_(0, segment, gained)
        misses = torch.zeros(len(reads), dtype=torch.int64).index_add_(0, segment, wrong)
        for (_, number, _), value, missed in zip(reads, sums.tolist(), misses.tolist(), strict=True):
            yield number, value, missed == 0


class _RefuseNaN(LogitsProcessor):
    """Stops a generation whose logits are not numbers: the argmax of NaN would pass as an answer."""

    def __init__(self, task: str) -> None:
        self.task = task

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        if bool(torch.isnan(scores).any()):
            raise NotFinite(f"task {self.task}: the logits of a generated token are NaN")
        return scores
