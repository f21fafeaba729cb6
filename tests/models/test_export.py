"""GPTQ checkpoints out of packed folders, read back by the format's definition and not by our code."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from r2q.models.apply import apply
from r2q.models.export import export
from r2q.models.load import load_full, load_packed
from r2q.models.packed import PackedWeight
from r2q.models.save import save
from r2q.models.targets import list_targets
from r2q.quantization.method import Recipe, make_method
from tests.models.test_targets import SMALL, small
from tests.models.tiny import byte_tokenizer, tiny_folder, tokens


def packed(tmp_path: Path, recipe: Recipe, case: str = "llama", positive: bool = False) -> Path:
    model = load_full(str(tiny_folder(case, tmp_path / "full")))
    targets = list_targets(model, recipe.lm_head)
    if positive:  # a group without a negative weight has the zero point 0
        targets[0].weight.data.abs_()
    apply(make_method(recipe), model, targets, torch.device("cpu"))
    save(model, None, tmp_path / "packed", dict(vars(recipe)), {"base_model": "owner/name", "license": "mit"})
    return tmp_path / "packed"


def bits_of(words: np.ndarray, bits: int) -> np.ndarray:
    """Fields of a column of 32-bit words, one bit at a time: field i is bits i * b to i * b + b - 1 of the string."""
    unsigned = words.view(np.uint32)
    string = [(int(word) >> place) & 1 for word in unsigned for place in range(32)]
    return np.array([sum(bit << k for k, bit in enumerate(string[i : i + bits])) for i in range(0, len(string), bits)])


def decoded(state: dict[str, np.ndarray], name: str, bits: int, offset: int) -> np.ndarray:
    """float16 [out, in]: ``scales[g_idx] * (code - zero)``, as the kernels of the format compute it."""
    qweight, qzeros, scales, g_idx = (state[f"{name}.{key}"] for key in ("qweight", "qzeros", "scales", "g_idx"))
    assert (qweight.dtype, qzeros.dtype, scales.dtype, g_idx.dtype) == (np.int32, np.int32, np.float16, np.int32)
    codes = np.stack([bits_of(column, bits) for column in qweight.T])  # [out, in]
    zeros = np.stack([bits_of(np.ascontiguousarray(row), bits) for row in qzeros]) + offset  # [groups, out]
    return scales[g_idx].T * (codes - zeros[g_idx].T).astype(np.float16)


@pytest.mark.parametrize(
    ("granularity", "bits", "positive", "case"),
    [("g32", 2, False, "llama"), ("g32", 3, False, "llama"), ("g64", 4, False, "llama"), ("channel", 2, False, "llama"),
     ("tensor", 3, False, "llama"), ("g32", 2, True, "llama"), ("g32", 2, False, "opt")],
)  # fmt: skip
def test_weights_decode_to_the_same_bits(
    granularity: str, bits: int, positive: bool, case: str, tmp_path: Path
) -> None:
    folder = packed(tmp_path, Recipe("rtn", "rtn", granularity, bits), case, positive)
    export(folder, tmp_path / "gptq")
    config: dict[str, Any] = json.loads((tmp_path / "gptq" / "config.json").read_text())["quantization_config"]
    size = int(granularity[1:]) if granularity.startswith("g") else -1
    assert config["quant_method"] == "gptq"
    assert (config["bits"], config["group_size"], config["desc_act"], config["sym"]) == (bits, size, False, False)
    assert config["checkpoint_format"] == ("gptq_v2" if positive else "gptq")
    state, model = load_file(tmp_path / "gptq" / "model.safetensors"), load_packed(folder)
    layers = {name: module for name, module in model.named_modules() if isinstance(module, PackedWeight)}
    assert {key.rpartition(".")[0] for key in state if key.endswith(".qweight")} == layers.keys()
    for name, layer in layers.items():
        expected = layer.dequantize(torch.float16).numpy()
        found = decoded(state, name, bits, 0 if positive else 1)
        assert np.array_equal(found, expected), name
        if getattr(layer, "bias", None) is not None:
            assert np.array_equal(state[f"{name}.bias"], layer.bias.numpy())  # type: ignore[union-attr]
    rest = [key for key in model.state_dict() if key.rpartition(".")[0] not in layers and key != "lm_head.weight"]
    assert all(np.array_equal(state[key], model.state_dict()[key].numpy()) for key in rest)


@pytest.mark.parametrize(
    ("config", "options"),
    [("GPTNeoXConfig", {}), ("FuyuConfig", {"text_config": {"model_type": "persimmon", **SMALL}})],
)
def test_tensors_have_the_names_of_the_source(config: str, options: dict[str, Any], tmp_path: Path) -> None:
    """transformers calls GPT-NeoX's output layer lm_head in memory, and embed_out on disk, as other readers do."""
    small(config, **options).save_pretrained(tmp_path / "full")
    byte_tokenizer().save_pretrained(tmp_path / "full")
    model = load_full(str(tmp_path / "full"))
    apply(make_method(Recipe("rtn", "rtn", "g32")), model, list_targets(model), torch.device("cpu"))
    save(model, None, tmp_path / "packed", {"name": "rtn"})
    export(tmp_path / "packed", tmp_path / "gptq")
    source, made = (load_file(tmp_path / name / "model.safetensors") for name in ("full", "gptq"))
    layers = {key.removesuffix(".qweight") for key in made if key.endswith(".qweight")}
    assert layers == {key.removesuffix(".weight") for key in source.keys() - made.keys()}
    assert all(key in source or key.rpartition(".")[0] in layers for key in made)
    assert all(np.array_equal(made[key], source[key]) for key in made.keys() & source.keys())


@pytest.mark.parametrize(
    ("recipe", "case", "message"),
    [
        (Recipe("r2q", "r2q", "g32"), "llama", "q_proj: its levels are binary, and the format has evenly spaced ones"),
        (Recipe("llm", "llm_qat", "g32"), "llama", "q_proj: its levels are symmetric"),
        (Recipe("hqq", "hqq", "g32"), "llama", "its zero points are fractions, and the format has whole ones"),
        (Recipe("rtn", "rtn", "g32"), "mixtral", "it is a stack of experts, and the format has one matrix a layer"),
        (Recipe("fp", "full_precision"), "llama", "has no packed layers: transformers and vLLM read it as it is"),
    ],
)
def test_what_the_format_cannot_hold_is_refused(recipe: Recipe, case: str, message: str, tmp_path: Path) -> None:
    folder = packed(tmp_path, recipe, case)
    with pytest.raises(ValueError, match=message):
        export(folder, tmp_path / "gptq")
    assert not (tmp_path / "gptq").exists()


def test_nothing_is_written_over(tmp_path: Path) -> None:
    folder = packed(tmp_path, Recipe("rtn", "rtn", "g32"))
    with pytest.raises(ValueError, match="is not empty"):
        export(folder, folder)


def test_the_card_of_a_folder_and_of_its_export(tmp_path: Path) -> None:
    folder = packed(tmp_path, Recipe("rtn-g32", "rtn", "g32"))
    export(folder, tmp_path / "gptq")
    for place, loads in ((folder, "import r2q"), (tmp_path / "gptq", "format `gptq`")):
        text = (place / "README.md").read_text()
        assert text.startswith("---\nbase_model: owner/name\nlicense: mit\n")
        assert loads in text
        size = sum(file.stat().st_size for file in place.glob("*.safetensors"))
        assert f"| weight files | {size:,} bytes |" in text
        assert "@misc{r2q" in text
    assert "2.562" in (folder / "README.md").read_text()  # 2 bits, and 16 + 2 for 32 weights
    (folder / "README.md").write_text("edited by whoever shares it")
    load_packed(folder)(tokens())  # a card is no part of the model
