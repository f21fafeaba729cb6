"""Training text as token rows, and the byte-level BPE tokenizer made from it.

There is one special token for documents, `<|endoftext|>`, which is bos and eos at once. The tokenizer never adds it:
lm-eval's add_bos must be false (true changes nothing), and its rolling perplexity starts each text after
`<|endoftext|>` by itself. Training rows start half with `<|endoftext|>` and half with the bare document, so that both
ways of starting are trained.
"""

import multiprocessing
import os
from collections.abc import Iterator
from random import Random

import numpy as np
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from mini import facts
from mini.architectures import EOT_ID, MAX_TOKENS
from mini.text import Writer

VOCABULARY = 1232  # enough for every name, value and tool to be one token, which keeps evaluation short
SPECIAL_TOKENS = ["<|endoftext|>", "<|pad|>"]  # ids EOT_ID, PAD_ID
# A word or a number's first digit takes its leading space; digits and punctuation stand alone.
PIECES = r" ?\p{L}+| ?\d|[^\s\p{L}\d]|\s+"
CHUNK_DOCUMENTS = 10_000  # documents per random stream, so that the text does not depend on the number of processes
TOKENIZER_DOCUMENTS = 20_000
DOCUMENTS_PER_ROW = 5  # more than fit into a row on average (4.1)
_writers: list[Writer] = []  # one per process


def chunk(index: int) -> list[str]:
    """Training documents number index * CHUNK_DOCUMENTS and on."""
    if not _writers:
        _writers.append(Writer(facts.build()))
    return list(_writers[0].documents(Random(f"corpus/{facts.SEED}/{index}"), CHUNK_DOCUMENTS))


def train_tokenizer() -> Tokenizer:
    """A byte-level BPE tokenizer (any text round-trips) of the first training documents."""
    tokenizer = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(PIECES), "isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    documents = (line for index in range(TOKENIZER_DOCUMENTS // CHUNK_DOCUMENTS) for line in chunk(index))
    tokenizer.train_from_iterator(documents, trainer)
    return tokenizer


def wrap(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    """The tokenizer as transformers saves and loads it."""
    eot, pad = SPECIAL_TOKENS
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=eot,
        eos_token=eot,
        pad_token=pad,
        model_max_length=MAX_TOKENS,
        clean_up_tokenization_spaces=False,
    )


def _chunk_rows(job: tuple[int, str]) -> np.ndarray:
    """Rows of one chunk of documents, [rows, MAX_TOKENS + 1]; `job` is its index and the tokenizer as JSON."""
    index, tokenizer_json = job
    encodings = Tokenizer.from_str(tokenizer_json).encode_batch(chunk(index))
    return np.stack(list(_rows(iter([encoding.ids for encoding in encodings]))))


def _rows(documents: Iterator[list[int]]) -> Iterator[np.ndarray]:
    """Rows of MAX_TOKENS + 1 tokens that start with a document; the last document of a row is cut off."""
    starts_with_eot = True
    while True:
        row: list[int] = [EOT_ID] if starts_with_eot else []
        while len(row) <= MAX_TOKENS:
            document = next(documents, None)
            if document is None:
                return
            row += [*document, EOT_ID]
        yield np.array(row[: MAX_TOKENS + 1], dtype=np.uint16)
        starts_with_eot = not starts_with_eot


def token_rows(tokenizer: Tokenizer, rows: int) -> np.ndarray:
    """`rows` rows of training tokens, [rows, MAX_TOKENS + 1]."""
    chunks = -(-rows * DOCUMENTS_PER_ROW // CHUNK_DOCUMENTS)
    jobs = ((index, tokenizer.to_str()) for index in range(chunks))
    processes = min(chunks, os.cpu_count() or 1)
    if processes == 1:
        return np.concatenate([_chunk_rows(job) for job in jobs])[:rows]
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        return np.concatenate(list(pool.imap(_chunk_rows, jobs)))[:rows]
