"""Text to token ids, with an explicit rule for the begin-of-text token, remembered for the units that share it."""

from array import array
from collections.abc import Iterable
from typing import Any

from r2q.config import ConfigError


def beyond_positions(key: str, tokens: int, positions: int | None, model: str) -> list[str]:
    """A sentence where `key` of a config asks for more tokens at once than a model has positions (None: any number)."""
    if positions is None or tokens <= positions:
        return []
    return [f"{key}: {tokens} tokens, but model {model} has only {positions} positions"]


class Encoder:
    """Encodes text for one tokenizer.

    Many tokenizers do not do what their settings say (`add_bos_token: true` without a rule that adds it), and scores of
    quantized models depend on it, so a wish is carried out here: True puts the begin-of-text token first, False never,
    None leaves it to the tokenizer.

    Raises:
        ConfigError: add_bos is true and the tokenizer has no such token; or it is None and the tokenizer ends every
            text with a token, which would stand between a question and its answers, and be scored in their place.
    """

    def __init__(self, tokenizer: Any, add_bos: bool | None = None) -> None:
        self.tokenizer, self.add_bos = tokenizer, add_bos
        self.bos = tokenizer.bos_token_id
        if add_bos and self.bos is None:
            raise ConfigError("add_bos: true, but the tokenizer has no begin-of-text token; use null or false")
        self._known: dict[tuple[str, bool], array[int]] = {}  # 4 bytes a token; lists take 36
        last = self.encode("a")[-1:]
        if last != self.encode("a", special=False)[-1:]:
            raise ConfigError(
                f"add_bos: the tokenizer ends every text with {tokenizer.convert_ids_to_tokens(last)[0]!r}, also a "
                "prompt; true (begin-of-text first) or false leaves that out"
            )
        self.adds_bos = self.bos is not None and self.encode("a")[:1] == [self.bos]  # to ordinary text

    def encode(self, text: str, special: bool = True) -> list[int]:
        """Token ids of `text`, without any special token when `special` is False."""
        if (text, special) not in self._known:
            self.encode_all([text], special)
        return self._known[text, special].tolist()

    def encode_all(self, texts: Iterable[str], special: bool = True) -> None:
        """Encode many texts in one call of the tokenizer; `encode` then finds them."""
        missing = [text for text in dict.fromkeys(texts) if (text, special) not in self._known]
        if not missing:
            return
        by_tokenizer = special and self.add_bos is None
        starts = self.tokenizer.bos_token if self.bos is not None else None
        batches: dict[bool, list[str]] = {True: [], False: []}  # by whether the tokenizer adds its special tokens
        for text in missing:
            batches[by_tokenizer and not (starts and text.startswith(starts))].append(text)
        for add, batch in batches.items():
            if batch:
                ids = self.tokenizer(batch, add_special_tokens=add, verbose=False)["input_ids"]
                self._known.update(
                    ((text, special), array("i", tokens)) for text, tokens in zip(batch, ids, strict=True)
                )
        if special and self.add_bos:
            for text in missing:
                if self._known[text, special][:1].tolist() != [self.bos]:
                    self._known[text, special].insert(0, self.bos)
