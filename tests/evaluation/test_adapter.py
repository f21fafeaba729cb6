"""The adapter against lm-eval's own model class, against brute force, and against itself."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from tokenizers.processors import TemplateProcessing
from transformers import AutoModelForCausalLM, MistralConfig

from r2q.config import ConfigError
from r2q.evaluation.adapter import NotFinite, Scorer
from r2q.tokens import Encoder
from tests.evaluation import tiny
from tests.models.tiny import CASES, byte_tokenizer

PAIRS = [
    ("The cat sat on the", " mat"),
    ("The cat sat on the", " roof of the house"),
    ("The cat sat on the", " m"),
    ("Is it so? Answer:", " n"),
    ("Is it so? Answer:", " y"),
    ("A short one ", "trailing space"),
    ("", "no context at all"),
    ("", "no"),
    ("x" * 100 + "y" * 70, " is cut off in front"),  # 170 + 21 tokens in 160 positions
    ("A different context", " mat"),
    ("The cat sat on the", " mat"),
]


def requests(kind: str, arguments: list[tuple[Any, ...]], task: str = "t") -> list[Instance]:
    return [Instance(kind, {}, args, i, (task, i, 1)) for i, args in enumerate(arguments)]


def scorer(case: str = "llama", batch_size: int = 64, add_bos: bool | None = False, **options: Any) -> Scorer:
    made = Scorer(tiny.model(case, **options), Encoder(byte_tokenizer(), add_bos), batch_size)
    made.task = "t"
    return made


def brute_force(model: Any, context: list[int], continuation: list[int]) -> tuple[float, bool]:
    """One token at a time, each with its own forward pass over all that stands before it and fits."""
    total, greedy = 0.0, True
    whole = (context + continuation)[-(tiny.POSITIONS + 1) :]
    for place in range(len(whole) - len(continuation), len(whole)):
        with torch.no_grad():
            logits = model(torch.tensor([whole[:place]])).logits[0, -1].double()
        total += float(torch.log_softmax(logits, 0)[whole[place]])
        greedy &= int(logits.argmax()) == whole[place]
    return total, greedy


@pytest.mark.parametrize("case", list(CASES))
def test_loglikelihood_is_that_of_lm_eval(case: str) -> None:
    ours = scorer(case)
    theirs = HFLM(ours.model, tokenizer=byte_tokenizer(), batch_size=1, max_length=tiny.POSITIONS, add_bos_token=False)
    found = ours.loglikelihood(requests("loglikelihood", PAIRS))
    expected = theirs.loglikelihood(requests("loglikelihood", PAIRS), disable_tqdm=True)
    assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]
    torch.testing.assert_close([v for v, _ in found], [v for v, _ in expected], rtol=2e-6, atol=2e-4)
    assert ours.truncated == {"t": 1}


@pytest.mark.parametrize("case", ["llama", "opt", "qwen3-tied"])
def test_loglikelihood_is_that_of_brute_force(case: str) -> None:
    ours = scorer(case)
    found = ours.loglikelihood(requests("loglikelihood", PAIRS[:6]))
    for (context, continuation), (value, greedy) in zip(PAIRS[:6], found, strict=True):
        tokens = ours._encode_pair(context, continuation)
        expected, expected_greedy = brute_force(ours.model, *tokens)
        assert value == pytest.approx(expected, abs=2e-4)
        assert greedy == expected_greedy


def test_greedy_continuation_is_recognised() -> None:
    """One continuation is what the model itself would say; the others are not."""
    ours = scorer()
    context = ours.tok_encode("The cat")
    said = ours.model.generate(torch.tensor([context]), max_new_tokens=4, do_sample=False)[0, len(context) :].tolist()
    other = [*said[:3], (said[3] + 1) % 250]
    answers = ours._loglikelihood_tokens([(None, context, said), (None, context, said[:2]), (None, context, other)])
    assert [greedy for _, greedy in answers] == [True, True, False]


def test_a_sliding_window_is_kept() -> None:
    """One question with three choices, longer than the window: as lm-eval scores it."""
    torch.manual_seed(0)
    settings: dict[str, Any] = {
        "vocab_size": 272, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "intermediate_size": 128, "max_position_embeddings": 128, "sliding_window": 16,
        "initializer_range": 0.1,
    }  # fmt: skip
    model = AutoModelForCausalLM.from_config(MistralConfig(**settings)).float().eval()
    ours = Scorer(model, Encoder(byte_tokenizer(), False), 4)
    theirs = HFLM(model, tokenizer=byte_tokenizer(), batch_size=1, max_length=128, add_bos_token=False)
    pairs = [("Where does the number live that nobody has ever asked for? " + "Answer: " * 3, c) for c in
             (" in house five", " in house eleven", " nowhere")]  # fmt: skip
    found = ours.loglikelihood(requests("loglikelihood", pairs))
    expected = theirs.loglikelihood(requests("loglikelihood", pairs), disable_tqdm=True)
    torch.testing.assert_close([v for v, _ in found], [v for v, _ in expected], rtol=2e-6, atol=2e-4)


@pytest.mark.parametrize("size", [1, 3, 64])
def test_batch_size_moves_nothing(size: int) -> None:
    found = scorer(batch_size=size).loglikelihood(requests("loglikelihood", PAIRS))
    expected = scorer(batch_size=5).loglikelihood(requests("loglikelihood", PAIRS))
    torch.testing.assert_close([v for v, _ in found], [v for v, _ in expected], rtol=2e-6, atol=2e-4)


def test_a_continuation_longer_than_the_model_is_scored_in_pieces() -> None:
    ours = scorer()
    context, continuation = "short", "long " * 50  # 250 tokens, 160 positions
    ((value, _),) = ours.loglikelihood(requests("loglikelihood", [(context, continuation)]))
    tokens = ours.tok_encode(context + continuation)
    first = tiny.POSITIONS + 1
    pieces = [(tokens[:5], tokens[5:first]), (tokens[first - 1 : first], tokens[first:])]
    assert value == pytest.approx(sum(brute_force(ours.model, *piece)[0] for piece in pieces), abs=5e-4)
    assert ours.truncated["t"] == 1


def test_rolling_is_that_of_lm_eval() -> None:
    texts = [("One text. " * 40,), ("Another, shorter.",)]
    ours = scorer()
    theirs = HFLM(ours.model, tokenizer=byte_tokenizer(), batch_size=2, max_length=tiny.POSITIONS, add_bos_token=False)
    found = ours.loglikelihood_rolling(requests("loglikelihood_rolling", texts))
    expected = theirs.loglikelihood_rolling(requests("loglikelihood_rolling", texts), disable_tqdm=True)
    torch.testing.assert_close(found, expected, rtol=2e-6, atol=1e-4)


@pytest.mark.parametrize("case", ["llama", "opt"])
def test_generation_is_that_of_lm_eval(case: str) -> None:
    prompts = [(f"{'Say it ' * i}again:", {"until": ["\n"], "max_gen_toks": 12, "do_sample": False}) for i in range(5)]
    ours = scorer(case)
    theirs = HFLM(ours.model, tokenizer=byte_tokenizer(), batch_size=64, max_length=tiny.POSITIONS, add_bos_token=False)
    found = ours.generate_until(requests("generate_until", prompts))
    assert found == theirs.generate_until(requests("generate_until", prompts), disable_tqdm=True)
    assert any(found)


def test_begin_of_text_is_put_where_the_tokenizer_forgets_it() -> None:
    """The byte tokenizer has the token but no rule that adds it: lm-eval's own switch does nothing there."""
    tokenizer = byte_tokenizer()
    assert tokenizer.encode("ab", add_special_tokens=True)[0] != tokenizer.bos_token_id
    ours = scorer(add_bos=True)
    assert ours.tok_encode("ab")[0] == tokenizer.bos_token_id
    assert ours.encoder.adds_bos
    ids, mask = ours.tok_batch_encode(["ab", "abcd"])
    assert ids[0].tolist()[:3] == [tokenizer.pad_token_id] * 2 + [tokenizer.bos_token_id]
    assert mask.sum(1).tolist() == [3, 5]
    ((value, _),) = ours.loglikelihood(requests("loglikelihood", [("ab", " c")]))
    tokens = tokenizer.encode("ab c", add_special_tokens=False)
    expected, _ = brute_force(ours.model, [tokenizer.bos_token_id, *tokens[:2]], tokens[2:])
    assert value == pytest.approx(expected, abs=1e-4)
    assert not Encoder(tokenizer, None).adds_bos
    assert Encoder(tokenizer, True).encode("<s>ab").count(tokenizer.bos_token_id) == 1


def test_a_tokenizer_that_ends_every_text_is_refused_unless_told_not_to() -> None:
    """lm-eval takes the answer for what follows as many tokens as the question has alone: here that is its end."""
    tokenizer = byte_tokenizer()
    tokenizer._tokenizer.post_processor = TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    with pytest.raises(ConfigError, match=r"add_bos: the tokenizer ends every text with '</s>'"):
        Encoder(tokenizer, None)
    asked = requests("loglikelihood", [("The cat sat on the", " mat")])
    for add_bos in (True, False):
        ours = Scorer(tiny.model(), Encoder(tokenizer, add_bos), 4)
        context, answer = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in asked[0].args)
        expected = brute_force(ours.model, [1] * add_bos + context, answer)
        assert ours.loglikelihood(asked) == [pytest.approx(expected, abs=1e-4)]


def test_begin_of_text_without_such_a_token_is_refused() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.bos_token = None
    with pytest.raises(ConfigError, match="no begin-of-text token"):
        Encoder(tokenizer, True)


def ask_loglikelihood(model: Scorer) -> Any:
    return model.loglikelihood(requests("loglikelihood", PAIRS[:2]))


def ask_generation(model: Scorer) -> Any:
    return model.generate_until(requests("generate_until", [("a", {"until": ["\n"], "max_gen_toks": 3})]))


@pytest.mark.parametrize("ask", [ask_loglikelihood, ask_generation])
def test_nan_is_an_error_and_not_an_answer(ask: Callable[[Scorer], Any]) -> None:
    ours = scorer()
    with torch.no_grad():
        ours.model.lm_head.weight[5, 0] = float("nan")
    with pytest.raises(NotFinite, match="task t"):
        ask(ours)


@pytest.mark.parametrize("name", ["max_gen_toks", "max_new_tokens"])
def test_more_tokens_to_generate_than_positions_is_one_sentence(name: str) -> None:
    """Neither are fewer refused: without a number it would be 256, more than there are."""
    few = requests("generate_until", [("a", {"until": ["\n"], name: 3})])
    assert len(scorer().generate_until(few)) == 1
    asked = requests("generate_until", [("a", {"until": ["\n"], name: tiny.POSITIONS})])
    with pytest.raises(ValueError, match=r"up to 160 tokens .* the model has 160 positions"):
        scorer().generate_until(asked)


def test_no_token_to_start_a_text_with_is_one_sentence() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.bos_token = tokenizer.eos_token = None
    ours = Scorer(tiny.model(), Encoder(tokenizer, None), 4)
    with pytest.raises(ValueError, match="no begin- and no end-of-text token"):
        ours.loglikelihood_rolling(requests("loglikelihood_rolling", [("a text",)]))
