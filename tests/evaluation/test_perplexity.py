"""Token perplexity against a slow loop, against lm-eval's word perplexity, and its refusals."""

import gzip
import math
import statistics
from pathlib import Path

import pytest
import torch
from lm_eval.api.instance import Instance

from r2q.evaluation.adapter import NotFinite, Scorer
from r2q.evaluation.perplexity import token_perplexity
from r2q.files import read_documents
from r2q.tokens import Encoder
from tests.evaluation import tiny
from tests.models.test_targets import small
from tests.models.tiny import byte_tokenizer

TEXT = "The first document is here.\n\nA second one follows it, with a few more words.\n\nThe third ends."


def token_losses(model: torch.nn.Module, window: list[int]) -> list[float]:
    """Negative log-likelihood of each token after the first, by one forward pass per token."""
    losses = []
    for place in range(1, len(window)):
        with torch.no_grad():
            logits = model(torch.tensor([window[:place]])).logits[0, -1].double()
        losses.append(float(logits.logsumexp(0) - logits[window[place]]))
    return losses


@pytest.mark.parametrize("case", ["llama", "opt", "qwen2"])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_token_perplexity_is_that_of_a_slow_loop(case: str, batch_size: int) -> None:
    model = tiny.model(case)
    ids = Encoder(byte_tokenizer(), False).encode(TEXT)
    window = 24
    windows = [ids[i : i + window] for i in range(0, len(ids) - window + 1, window)]
    assert len(ids) % window  # there is a tail to drop
    losses = [token_losses(model, each) for each in windows]
    result = token_perplexity(model, ids, window, batch_size=batch_size)
    assert result.value == pytest.approx(math.exp(statistics.fmean(loss for each in losses for loss in each)), rel=1e-5)
    means = [statistics.fmean(each) for each in losses]
    expected = result.value * statistics.stdev(means) / math.sqrt(len(means))
    assert result.stderr == pytest.approx(expected, rel=1e-3)
    assert (result.windows, result.tokens, result.first_token) == (len(windows), len(ids), ids[0])


def test_no_cache_is_made_by_models_whose_forward_does_not_name_it() -> None:
    """transformers 5.23 gives a hybrid Granite without attention a cache that it cannot use."""
    mamba = {"mamba_n_heads": 4, "mamba_d_head": 32, "mamba_n_groups": 1, "layer_types": ["mamba"] * 2}
    model = small("GraniteMoeHybridConfig", num_local_experts=0, **mamba)
    with torch.no_grad():
        logits = model(torch.arange(24)[None], use_cache=False).logits[0]
    expected = torch.nn.functional.cross_entropy(logits[:-1], torch.arange(1, 24)).exp()
    assert token_perplexity(model, range(24), 24).value == pytest.approx(float(expected), rel=1e-5)


def test_only_the_first_windows() -> None:
    model, ids = tiny.model(), Encoder(byte_tokenizer(), False).encode(TEXT)
    two = token_perplexity(model, ids, 24, windows=2)
    assert two.value == token_perplexity(model, ids[:48], 24).value != token_perplexity(model, ids, 24).value
    assert (two.windows, two.tokens) == (2, len(ids))
    assert token_perplexity(model, ids, 24, windows=1).stderr is None


def test_word_perplexity_is_a_power_of_token_perplexity() -> None:
    """One document, one window: lm-eval predicts the same tokens from the same begin-of-text token."""
    model, text = tiny.model(), "Eight words make one very small page here"
    words, encoder = len(text.split()), Encoder(byte_tokenizer(), True)
    ids = encoder.encode(text)
    ours = token_perplexity(model, ids, len(ids))
    rolling = Scorer(model, Encoder(byte_tokenizer(), False), 1)  # lm-eval itself puts the prefix token in front
    request = Instance("loglikelihood_rolling", {}, (text,), 0, ("t", 0, 1))
    (log_likelihood,) = rolling.loglikelihood_rolling([request])
    word_perplexity = math.exp(-log_likelihood / words)
    assert word_perplexity == pytest.approx(ours.value ** ((len(ids) - 1) / words), rel=1e-4)
    assert ours.first_token == byte_tokenizer().bos_token_id


def test_a_text_shorter_than_a_window_is_refused() -> None:
    with pytest.raises(ValueError, match="5 tokens, fewer than one window of 8"):
        token_perplexity(tiny.model(), [3, 4, 5, 6, 7], 8)


def test_nan_is_refused() -> None:
    model = tiny.model()
    with torch.no_grad():
        model.lm_head.weight[:] = float("nan")
    with pytest.raises(NotFinite):
        token_perplexity(model, list(range(3, 20)), 8)


def test_texts_are_read_from_every_kind_of_file(tmp_path: Path) -> None:
    import lzma

    import pyarrow as pa
    from pyarrow import parquet

    documents = ["one", "zwei ü", "three"]
    rows = [{"page": text, "other": 1} for text in documents]
    for ending in (".jsonl", ".jsonl.xz"):
        assert read_documents(tiny.write_jsonl(tmp_path / f"a{ending}", rows), "page") == documents
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress("one\n\nzwei ü".encode()))
    (tmp_path / "a.txt.xz").write_bytes(lzma.compress(b"one"))
    assert read_documents(tmp_path / "a.txt.gz") == ["one\n\nzwei ü"]
    assert read_documents(tmp_path / "a.txt.xz") == ["one"]
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    assert read_documents(tmp_path / "a.parquet", "page") == documents


def test_unreadable_texts_are_named(tmp_path: Path) -> None:
    good = tiny.write_jsonl(tmp_path / "a.jsonl.xz", [{"page": "x"}])
    with pytest.raises(ValueError, match=r"a\.jsonl\.xz has no column text; it has page"):
        read_documents(good)
    (tmp_path / "cut.jsonl.xz").write_bytes(good.read_bytes()[:-9])
    with pytest.raises(ValueError, match=r"cut\.jsonl\.xz: damaged"):
        read_documents(tmp_path / "cut.jsonl.xz", "page")
    (tmp_path / "bad.jsonl").write_text('{"text": "x"}\nnonsense\n')
    with pytest.raises(ValueError, match=r"bad\.jsonl"):
        read_documents(tmp_path / "bad.jsonl")
    tiny.write_jsonl(tmp_path / "n.jsonl", [{"text": "x"}, {"text": 3}])
    with pytest.raises(ValueError, match=r"n\.jsonl, row 2: column text holds int"):
        read_documents(tmp_path / "n.jsonl")
    with pytest.raises(FileNotFoundError):
        read_documents(tmp_path / "absent.txt")


def test_one_file_of_a_large_data_set_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    asked: list[tuple[str, str, str]] = []

    def download(repository: str, file: str, repo_type: str) -> str:
        asked.append((repository, file, repo_type))
        with gzip.open(tmp_path / "part.json.gz", "wt") as stream:
            stream.write('{"text": "one"}\n{"text": "two"}\n')
        return str(tmp_path / "part.json.gz")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    assert read_documents("allenai/c4:en:c4-validation.00000-of-00008.json.gz") == ["one", "two"]
    assert asked == [("allenai/c4", "en/c4-validation.00000-of-00008.json.gz", "dataset")]
