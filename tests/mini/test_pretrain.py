"""Training: the same bits twice, the loss goes down, and the sizes are what the models' documentation says."""

import csv
import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from mini import architectures, corpus, pretrain, tasks, words, world
from mini.facts import ATTRIBUTES

MODELS = Path(__file__).parents[2] / "mini/models"


def test_a_few_steps_lower_the_loss_and_give_the_same_bits_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pretrain, "LOG_EVERY_STEPS", 4)
    monkeypatch.setattr(corpus, "CHUNK_DOCUMENTS", 500)
    monkeypatch.setattr(corpus, "TOKENIZER_DOCUMENTS", 2000)
    provenances = []
    try:
        for out in ("a", "b"):
            arguments = ["--models", "mini-llama-fp-small", "--device", "cpu", "--steps", "12", "--batch-rows", "2"]
            pretrain.main(["--out", str(tmp_path / out), *arguments])
            folder = tmp_path / out / "mini-llama-fp-small"
            provenances.append(json.loads((folder / "provenance.json").read_text()))
    finally:
        torch.use_deterministic_algorithms(False)
        torch.utils.deterministic.fill_uninitialized_memory = True
    first, second = provenances
    for key in ("weights_sha256", "tokenizer_sha256", "world_sha256", "final_loss_nats_per_token"):
        assert first[key] == second[key], key
    losses = [float(row["loss_nats_per_token"]) for row in csv.DictReader((folder / "loss.csv").open())]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < losses[0] - 0.3
    assert first["weights_sha256"] == world.sha256((folder / "model.safetensors").read_bytes())
    assert not list(tmp_path.rglob("*.npy"))


@pytest.mark.parametrize("name", world.MODEL_NAMES)
def test_committed_model_loads_and_every_weight_is_used(name: str) -> None:
    model, info = AutoModelForCausalLM.from_pretrained(MODELS / name, output_loading_info=True)
    assert not any(info.values())
    assert model.dtype == torch.bfloat16
    assert model.config.max_position_embeddings == architectures.MAX_TOKENS
    assert model.config.vocab_size == corpus.VOCABULARY


def test_tokenizer_round_trips_adds_nothing_and_has_a_token_for_each_answer() -> None:
    tokenizer = AutoTokenizer.from_pretrained(MODELS / "mini-opt")
    assert len(tokenizer) == corpus.VOCABULARY
    text = "Where does Anna Reed live?\n\tÄ 1234 <b>"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert tokenizer("Anna")["input_ids"] == tokenizer("Anna", add_special_tokens=False)["input_ids"]
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (0, 0, 1)
    answers = [*words.WOMEN, *words.MEN, *words.TOOLS, "yes", "no", *(v for vs in ATTRIBUTES.values() for v in vs)]
    assert [word for word in answers if len(tokenizer(f" {word}")["input_ids"]) != 1] == []


def test_small_full_precision_file_is_no_larger_than_the_llama_at_two_bits() -> None:
    llama = AutoModelForCausalLM.from_pretrained(MODELS / "mini-llama")
    linear = sum(m.weight.numel() for m in llama.model.layers.modules() if isinstance(m, torch.nn.Linear))
    rest = sum(p.numel() for p in llama.parameters()) - linear
    bound = linear * 2.28 / 8 + rest * 2
    assert abs(architectures.equal_memory_bytes(llama) - bound) < 1
    size = (MODELS / "mini-llama-fp-small/model.safetensors").stat().st_size
    assert 0.95 * bound < size <= bound


def test_committed_binaries_stay_small() -> None:
    assert sum(path.stat().st_size for path in MODELS.rglob("*.safetensors")) < 10 * 2**20


def test_unknown_model_name_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        pretrain.main(["--out", str(tmp_path), "--models", "mini-lama"])
    assert "unknown model 'mini-lama': there are mini-llama" in capsys.readouterr().err


def test_lm_eval_loads_the_tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    monkeypatch.chdir(tmp_path)
    from lm_eval.tasks import TaskManager

    world.main(["--out", "here"])
    manager = TaskManager(include_path="here/tasks", include_defaults=False)
    names = [task.name for task in tasks.TASKS]
    assert sorted(manager.all_tasks) == sorted(names)
    described = json.loads(Path("here/world.json").read_text())["tasks"]
    loaded = manager.load(names)["tasks"]
    for name in names:
        assert len(loaded[name].test_docs()) == described[name]["items"]
    facts = loaded["mini_facts"]
    document = facts.test_docs()[0]
    assert facts.doc_to_choice(document)[facts.doc_to_target(document)] == document["choices"][document["label"]]
