"""Packed folders: loaded bit for bit by transformers and by our loader, and refused when they are not whole."""

import copy
import json
import pickle
import re
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    JambaConfig,
    Zamba2Config,
    xLSTMConfig,
)

import r2q
from r2q.kept import file_sha256
from r2q.models.apply import apply, formula_bytes
from r2q.models.load import load_full, load_packed
from r2q.models.packed import PackedLinear, PackedWeight, layer_spec, make_dense_checked
from r2q.models.plugin import FORMAT_VERSION
from r2q.models.save import folder_digest, save
from r2q.models.targets import list_targets
from r2q.quantization.method import QuantizedWeight, Recipe, make_method
from tests.baselines.calibrated import SHORT, text
from tests.models.tiny import CASES, COMMON, LINEARS, byte_tokenizer, tiny_folder, tokens

assert r2q.__version__  # the import that registers the plug-in

R2Q = Recipe("r2q-g32", "r2q", "g32")
RECIPES = [
    R2Q,
    Recipe("rtn-channel", "rtn", "channel"),
    Recipe("rtn-tensor", "rtn", "tensor", 3),
    Recipe("r2q4-g64", "r2q", "g64", 4, options={"refine": "refit"}),
]
AWQ = Recipe("awq-g32", "awq", "g32", options=SHORT["awq"])


def pack_folder(source: Path, folder: Path, recipe: Recipe = R2Q) -> tuple[torch.nn.Module, torch.Tensor]:
    """Quantize in place and save; returns the quantized model and its logits."""
    model = load_full(str(source))
    apply(make_method(recipe), model, list_targets(model, recipe.lm_head), torch.device("cpu"))
    save(model, None, folder, dict(vars(recipe)))
    return model, logits(model)


@torch.no_grad()
def logits(model: torch.nn.Module) -> torch.Tensor:
    return model(tokens()).logits


def fake_quantized(source: Path, recipe: Recipe) -> torch.nn.Module:
    """The full-precision model with every target weight replaced by its dequantized value: no packed layer at all."""
    model, method = load_full(str(source)), make_method(recipe)
    for target in list_targets(model, recipe.lm_head):
        quantized = method.quantize_weight(target.weight, target.name)  # type: ignore[attr-defined]
        target.weight.data.copy_(quantized.dequantize())
    model.config._experts_implementation = "eager"  # type: ignore[union-attr]
    return model


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", CASES)
def test_every_way_of_loading_gives_the_same_bits(case: str, dtype: torch.dtype, tmp_path: Path) -> None:
    source = tiny_folder(case, tmp_path / "full", dtype)
    for recipe in RECIPES[: 2 if dtype == torch.bfloat16 else None]:
        folder = tmp_path / recipe.name
        model, expected = pack_folder(source, folder, recipe)
        assert torch.equal(logits(fake_quantized(source, recipe)), expected)
        loaded = load_packed(folder)
        assert torch.equal(logits(loaded), expected)
        assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(folder)), expected)
        dense = load_packed(folder, dense=True)
        dense.config._experts_implementation = "eager"
        assert torch.equal(logits(dense), expected)
        state, again = model.state_dict(), loaded.state_dict()
        assert state.keys() == again.keys()
        assert all(torch.equal(state[k], again[k]) and state[k].dtype == again[k].dtype for k in state)
        assert loaded.get_input_embeddings().weight.dtype == dtype
        tied = loaded.get_output_embeddings().weight is loaded.get_input_embeddings().weight
        assert tied == loaded.config.tie_word_embeddings


def written(folder: Path) -> dict[str, torch.Tensor]:
    """The decoded weights of a folder, by docs/format.md and with numpy alone."""
    layers = json.loads((folder / "config.json").read_text())["quantization_config"]["layers"]
    with safe_open(folder / "model.safetensors", "np") as file:
        stored = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118

    def bits(string: Any, count: int, width: int) -> Any:  # of each of ``count`` numbers, from the lowest
        return np.unpackbits(string, axis=-1, bitorder="little")[..., : count * width].reshape(-1, count, width)

    weights = {}
    for name, spec in layers.items():
        of = {key.removeprefix(f"{name}."): x for key, x in stored.items() if key.startswith(f"{name}.")}
        width, shape, grid = spec["bits"], spec["shape"], (spec["rows"], spec["groups"])
        code = bits(of["codes"], shape[-1], width).reshape(*grid, -1, width)
        if spec["grid"] == "binary":
            alpha = of["alpha"].astype(np.float32)[:, :, None]
            weight = sum((2 * code[..., i] - np.float32(1)) * alpha[..., i] for i in range(width))
        else:
            zero = (bits(of["zero"], grid[0] * grid[1], width) @ 2 ** np.arange(width)).reshape(*grid, 1)
            weight = np.float32(code @ 2 ** np.arange(width) - zero) * of["scale"].astype(np.float32)[:, :, None]
        weight = weight.reshape(shape) / of.get("in_scale", np.float16(1)).astype(np.float32)
        weights[name] = torch.from_numpy(weight.swapaxes(-1, -2) if spec.get("transposed") else weight)
    return weights


@pytest.mark.parametrize("case", ["qwen2-moe", "gpt-oss", "llama4"])
@pytest.mark.parametrize("recipe", [*RECIPES, AWQ], ids=lambda r: r.name)
def test_a_reader_that_knows_the_documentation_alone(case: str, recipe: Recipe, tmp_path: Path) -> None:
    """Its weights, put into the full-precision model, give the packed model's logits to the bit."""
    source, folder = tiny_folder(case, tmp_path / "full"), tmp_path / "packed"
    model = load_full(str(source))
    apply(make_method(recipe), model, list_targets(model), torch.device("cpu"), text(windows=16))
    save(model, None, folder, dict(vars(recipe)))
    plain = load_full(str(source))
    parameters, weights = dict(plain.named_parameters()), written(folder)
    for name, weight in weights.items():
        parameters[name if name in parameters else f"{name}.weight"].data.copy_(weight)
    plain.config._experts_implementation = "eager"  # type: ignore[union-attr]
    assert len(weights) == LINEARS[case]
    assert torch.equal(logits(plain), logits(load_packed(folder)))


@pytest.mark.parametrize("case", ["gpt-oss", "llama4"])
def test_groups_run_along_what_a_product_sums_over(case: str, tmp_path: Path) -> None:
    pack_folder(tiny_folder(case, tmp_path / "full"), tmp_path / "packed")
    stacks = [x for x in load_packed(tmp_path / "packed", dense=True).parameters() if x.dim() == 3]
    assert len(stacks) == 4
    for stack in stacks:  # [experts, in, out]
        groups = stack.detach().unflatten(1, (-1, 32)).transpose(2, 3).flatten(0, 2)
        assert all(len(group.unique()) <= 4 for group in groups)


@pytest.mark.parametrize("case", ["llama-tied", "opt", "qwen2-moe", "gpt-oss"])
@pytest.mark.parametrize("recipe", RECIPES, ids=lambda r: r.name)
def test_the_file_is_as_large_as_the_formula(case: str, recipe: Recipe, tmp_path: Path) -> None:
    """To the byte, but for the header of the safetensors file and the last, partly used byte of packed zero points."""
    model, _ = pack_folder(tiny_folder(case, tmp_path / "full"), tmp_path / "packed", recipe)
    file = tmp_path / "packed" / "model.safetensors"
    with file.open("rb") as stream:
        header = 8 + struct.unpack("<Q", stream.read(8))[0]
    partly_used = LINEARS[case] if recipe.name == "rtn-tensor" else 0
    assert formula_bytes(model) <= file.stat().st_size - header <= formula_bytes(model) + partly_used


def test_bits_per_weight_of_the_formats(tmp_path: Path) -> None:
    """2 + 32/g for R2Q, 2 + (16 + 2)/g for RTN, as the literature counts them."""
    source = tiny_folder("llama", tmp_path / "full")
    for recipe, bits in [(R2Q, 2 + 32 / 32), (Recipe("rtn-g64", "rtn", "g64"), 2 + 18 / 64)]:
        model = load_full(str(source))
        layers, _ = apply(make_method(recipe), model, list_targets(model), torch.device("cpu"))
        assert {layer["bits_per_weight"] for layer in layers} == {bits}


def test_scales_stay_16_bit_under_a_cast(tmp_path: Path) -> None:
    source = tiny_folder("qwen2", tmp_path / "full")
    pack_folder(source, tmp_path / "packed")
    model = load_packed(tmp_path / "packed")
    before = {k: v.clone() for k, v in model.state_dict().items()}
    model.to(torch.bfloat16)
    for name, module in model.named_modules():
        if isinstance(module, PackedLinear):
            assert torch.equal(module.alpha, before[f"{name}.alpha"])
            assert module.alpha.dtype == torch.float16
            assert module.bias is None or module.bias.dtype == torch.bfloat16
    assert logits(model).dtype == torch.bfloat16


def test_a_dtype_asked_for_leaves_codes_and_scales(tmp_path: Path) -> None:
    pack_folder(tiny_folder("mixtral", tmp_path / "full", torch.bfloat16), tmp_path / "packed")
    packed, cast = load_packed(tmp_path / "packed"), load_packed(tmp_path / "packed", dtype="float32")
    for name, module in cast.named_modules():
        if isinstance(module, PackedWeight):
            for key, buffer in packed.get_submodule(name).named_buffers():
                assert torch.equal(buffer, module.get_buffer(key))
    assert logits(cast).dtype == torch.float32


def test_models_that_want_layers_in_float32_leave_scales(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As HY-V4 does for what is called `scale`: they had been saved again with twice the bits."""
    monkeypatch.setattr(transformers.LlamaForCausalLM, "_keep_in_fp32_modules_strict", {"scale", "mlp"})
    recipe = Recipe("rtn-channel", "rtn", "channel")
    pack_folder(tiny_folder("llama", tmp_path / "full", torch.bfloat16), tmp_path / "packed", recipe)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "packed")
    model.save_pretrained(tmp_path / "again")
    stored, again = (load_file(tmp_path / name / "model.safetensors") for name in ("packed", "again"))
    assert {name: tensor.dtype for name, tensor in again.items()} == {name: t.dtype for name, t in stored.items()}
    assert all(torch.equal(again[name], tensor) for name, tensor in stored.items())


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.name)
def test_of_a_stack_only_the_expert_that_is_asked_is_decoded(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every expert of a layer decoded for each of them took as many times as long as there are experts."""
    model, wanted = pack_folder(tiny_folder("mixtral", tmp_path / "full"), tmp_path / "packed", recipe)
    stacks = [module for module in model.modules() if type(module) is PackedWeight]
    for stack in stacks:
        whole = stack.dequantize(torch.float32)
        for number in range(4):
            assert torch.equal(stack[number], whole[number])
            assert torch.equal(stack[torch.tensor(number)], whole[number])
        assert torch.equal(stack[torch.tensor([2, 0])], whole[[2, 0]])
    shapes, decode = set(), QuantizedWeight.dequantize

    def remember(weight: QuantizedWeight) -> torch.Tensor:
        shapes.add(weight.shape)
        return decode(weight)

    monkeypatch.setattr(QuantizedWeight, "dequantize", remember)
    assert torch.equal(logits(model), wanted)
    assert {len(shape) for shape in shapes} == {2}


def test_an_untied_head_can_be_packed(tmp_path: Path) -> None:
    recipe = Recipe("r2q-g32", "r2q", "g32", lm_head=True)
    _, expected = pack_folder(tiny_folder("llama", tmp_path / "full"), tmp_path / "packed", recipe)
    loaded = load_packed(tmp_path / "packed")
    assert isinstance(loaded.lm_head, PackedLinear)
    assert torch.equal(logits(loaded), expected)


def test_large_models_are_written_in_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("r2q.models.save.MAX_SHARD", "20KB")
    _, expected = pack_folder(tiny_folder("llama", tmp_path / "full"), tmp_path / "packed")
    assert len(list((tmp_path / "packed").glob("*.safetensors"))) > 2
    assert torch.equal(logits(load_packed(tmp_path / "packed")), expected)


@pytest.fixture(scope="module")
def _packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llama")
    pack_folder(tiny_folder("llama", folder / "full"), folder / "packed")
    return folder / "packed"


@pytest.fixture
def packed(_packed: Path, tmp_path: Path) -> Path:
    """A packed Llama that the test may change."""
    return shutil.copytree(_packed, tmp_path / "packed")


def edit_config(folder: Path, **changes: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] |= changes
    (folder / "config.json").write_text(json.dumps(config))


def resave(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    """Other tensors, with the digest in config.json made to fit: only the keys are wrong then."""
    file = folder / "model.safetensors"
    change(state := load_file(file))
    save_file(state, file, metadata={"format": "pt"})
    edit_config(folder, sha256={file.name: file_sha256(file)})


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-50])


def retype(folder: Path, **changes: object) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def add_layer(folder: Path) -> None:
    layers = json.loads((folder / "config.json").read_text())["quantization_config"]["layers"]
    layers["model.layers.9.mlp.up_proj"] = layers["model.layers.1.mlp.up_proj"]
    edit_config(folder, layers=layers, sha256={})


ALPHA = "model.layers.1.mlp.up_proj.alpha"
WRONG: dict[str, tuple[Callable[[Path], Any], str]] = {
    "a missing key": (lambda f: resave(f, lambda s: s.pop(ALPHA)), f"missing keys: {ALPHA}"),
    "an unexpected key": (
        lambda f: resave(f, lambda s: s.update({"model.extra": torch.zeros(2)})),
        "unexpected keys: model.extra",
    ),
    "a truncated file": (lambda f: cut(f / "model.safetensors"), "model.safetensors is damaged"),
    "a truncated config": (lambda f: cut(f / "config.json"), "config.json is damaged"),
    "an edited config": (lambda f: retype(f, rms_norm_eps=0.5), "config.json is damaged"),
    "no object": (lambda f: retype(f, quantization_config=["r2q"]), "quantization_config is no JSON object"),
    "a newer format": (
        lambda f: edit_config(f, format_version=FORMAT_VERSION + 1),
        f"format version {FORMAT_VERSION + 1}; this r2q reads up to {FORMAT_VERSION}",
    ),
    "a layer that is not there": (add_layer, "packed layer model.layers.9.mlp.up_proj"),
    **{
        f"version {version!r}": (lambda f, v=version: edit_config(f, format_version=v), "not a whole number")
        for version in ("9", None, True, 1.5)
    },
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_with_a_packed_folder_is_refused(case: str, packed: Path) -> None:
    change, said = WRONG[case]
    change(packed)
    with pytest.raises(ValueError, match=re.escape(said)):
        load_packed(packed)


def test_a_truncated_plain_file_is_refused(tmp_path: Path) -> None:
    source = tiny_folder("llama", tmp_path / "full")
    cut(source / "model.safetensors")
    with pytest.raises(ValueError, match="damaged or truncated"):
        load_packed(source)


def test_a_flipped_bit_is_refused_by_both_loaders(packed: Path) -> None:
    file = packed / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-100] ^= 1
    file.write_bytes(content)
    for load in (load_packed, AutoModelForCausalLM.from_pretrained):
        with pytest.raises(ValueError, match=r"is damaged: its SHA-256 is not the one in config\.json"):
            load(packed)


def test_a_folder_without_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no config\.json"):
        load_packed(tmp_path)


def test_a_packed_model_is_never_quantized_again(packed: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="already quantized"):
        load_full(str(packed))
    with pytest.raises(ValueError, match="already quantized"):
        list_targets(load_packed(packed))
    load_packed(packed, dense=True).save_pretrained(tmp_path / "dense")  # nor its dequantized copy
    with pytest.raises(ValueError, match="already quantized"):
        load_full(str(tmp_path / "dense"))


def test_no_pickle_is_written(packed: Path) -> None:
    names = {file.name for file in packed.iterdir()}
    assert names == {"config.json", "generation_config.json", "model.safetensors", "README.md"}  # and no tokenizer


def test_nothing_of_an_earlier_unit_is_left(packed: Path, tmp_path: Path) -> None:
    model, tokenizer = load_full(str(tiny_folder("llama", tmp_path / "full"))), byte_tokenizer()
    tokenizer.chat_template = "{{ messages }}"
    save(load_packed(packed), tokenizer, tmp_path / "unit", {})
    tokenizer.chat_template = None
    save(model, tokenizer, tmp_path / "unit", {})
    save(model, tokenizer, tmp_path / "fresh", {})
    unit, fresh = ({file.name for file in (tmp_path / name).iterdir()} for name in ("unit", "fresh"))
    assert unit == fresh


def test_hashes_are_made_anew_by_a_save(packed: Path, tmp_path: Path) -> None:
    for size in ("5GB", "20KB"):
        folder = tmp_path / size
        model = load_packed(packed, dtype="float32")
        model.save_pretrained(folder, max_shard_size=size)
        assert torch.equal(logits(load_packed(folder)), logits(model))
        file = max(folder.glob("*.safetensors"))
        assert file.stat().st_mode == (folder / "config.json").stat().st_mode
        content = bytearray(file.read_bytes())
        content[-1] ^= 1
        file.write_bytes(content)
        with pytest.raises(ValueError, match="is damaged"):
            load_packed(folder)


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))], ids=["copy", "pickle"]
)
def test_a_copy_is_a_packed_model_of_its_own(copied: Any, packed: Path, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(packed)
    wanted, twin = logits(model), copied(model)
    for weight in model.parameters():
        weight.data.zero_()
    assert torch.equal(logits(twin), wanted)
    twin.save_pretrained(tmp_path)
    assert torch.equal(logits(load_packed(tmp_path)), wanted)


AXK1 = {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "first_k_dense_replace": 1}
AXK1 |= {"n_group": 1, "topk_group": 1}
AXK1 |= {"q_lora_rank": 32, "kv_lora_rank": 32, "qk_rope_head_dim": 16, "qk_nope_head_dim": 16, "v_head_dim": 16}


@pytest.mark.parametrize(
    "config",
    [
        transformers.AXK1Config(**COMMON, **AXK1, num_key_value_heads=4, intermediate_size=64),  # a norm is renamed
        transformers.MixtralConfig(**COMMON, num_local_experts=4, intermediate_size=64, num_key_value_heads=2),
        transformers.GPTNeoXConfig(**COMMON, intermediate_size=64),
    ],
    ids=lambda config: config.model_type,
)
def test_names_are_the_models_own_while_packed_and_those_of_checkpoints_after(config: Any, tmp_path: Path) -> None:
    def names(folder: Path) -> set[str]:
        return {*load_file(folder / "model.safetensors")}

    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "full")
    packed, _ = pack_folder(tmp_path / "full", tmp_path / "packed")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "packed")
    model.save_pretrained(tmp_path / "again")
    assert names(tmp_path / "packed") == names(tmp_path / "again") == {*packed.state_dict()}
    model.dequantize().save_pretrained(tmp_path / "dense")
    assert names(tmp_path / "dense") == names(tmp_path / "full")
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "dense")), logits(model))


@pytest.mark.parametrize("head", [False, True])
def test_a_model_with_more_tokens_is_saved_with_them(head: bool, tmp_path: Path) -> None:
    """Also where the head, which gets rows for them, is packed."""
    recipe = Recipe("r2q-g32", "r2q", "g32", lm_head=head)
    _, wanted = pack_folder(tiny_folder("llama", tmp_path / "full"), tmp_path / "packed", recipe)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "packed")
    model.resize_token_embeddings(300)
    assert torch.equal(logits(model)[..., :272], wanted)
    model.save_pretrained(tmp_path / "more")
    for again in (load_packed(tmp_path / "more"), AutoModelForCausalLM.from_pretrained(tmp_path / "more")):
        assert torch.equal(logits(again), logits(model))


def test_layers_that_are_no_longer_packed_are_saved_as_they_are(packed: Path, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(packed)
    model.model.layers[0].mlp.up_proj = torch.nn.Linear(64, 128, bias=False)
    model.model.layers, model.config.num_hidden_layers = model.model.layers[:1], 1
    model.save_pretrained(tmp_path)
    again = load_packed(tmp_path)
    assert torch.equal(logits(again), logits(model))
    assert isinstance(again.model.layers[0].mlp.down_proj, PackedLinear)


def test_layers_of_several_widths_compile() -> None:
    torch.compiler.reset()
    for bits in (2, 3):
        weight = make_method(Recipe("rtn", "rtn", "g16", bits)).quantize_weight(torch.randn(24, 48))  # type: ignore[attr-defined]
        layer, x = PackedLinear(layer_spec(weight)), torch.randn(5, 48)
        layer.fill(weight)
        assert torch.equal(torch.compile(layer, backend="aot_eager")(x), layer(x))


def test_packed_tensors_that_are_missing_are_never_made_up(packed: Path) -> None:
    """transformers itself only warns of missing keys."""
    resave(packed, lambda state: state.pop("model.layers.1.mlp.up_proj.codes"))
    for auto, name in ((AutoModelForCausalLM, "model.layers"), (AutoModel, "layers")):
        with pytest.raises(ValueError, match=rf"missing keys: {name}\.1\.mlp\.up_proj\.codes"):
            auto.from_pretrained(packed)


def test_a_double_precision_model_is_packed(tmp_path: Path) -> None:
    _, expected = pack_folder(tiny_folder("llama", tmp_path / "full", torch.float64), tmp_path / "packed")
    assert expected.dtype == torch.float64
    assert torch.equal(logits(load_packed(tmp_path / "packed")), expected)


def test_dense_layers_that_compute_something_else_are_refused(packed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert torch.equal(logits(make_dense_checked(load_packed(packed))), logits(load_packed(packed)))
    monkeypatch.setattr(PackedLinear, "forward", lambda layer, x: -(x @ layer.dequantize(x.dtype).T))
    with pytest.raises(ValueError, match="logits of packed layers differ from dense ones by"):
        make_dense_checked(load_packed(packed))

    def no_forward(layer: PackedLinear, x: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("no such shape")

    monkeypatch.setattr(PackedLinear, "forward", no_forward)
    with pytest.raises(ValueError, match="does not run with packed layers: no such shape"):
        make_dense_checked(load_packed(packed))


def test_what_several_layers_share_stays_as_it_is(tmp_path: Path) -> None:
    kinds = ["mamba"] * 7 + ["hybrid"] * 2
    small = {"vocab_size": 272, "hidden_size": 64, "intermediate_size": 32, "num_hidden_layers": len(kinds)}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 4, "n_mamba_heads": 4, "mamba_headdim": 32}
    blocks = {"layers_block_type": kinds, "num_mem_blocks": 1, "adapter_rank": 32, "mamba_ngroups": 1}
    full = AutoModelForCausalLM.from_config(Zamba2Config(**small, **heads, **blocks))
    full.save_pretrained(tmp_path / "full")
    targets = [target.name for target in list_targets(full)]
    assert len(targets) == 20  # each block's mamba in and out, and what stands between the shared part and it
    assert not any("shared" in name for name in targets)
    _, expected = pack_folder(tmp_path / "full", tmp_path / "packed")
    assert torch.equal(logits(fake_quantized(tmp_path / "full", R2Q)), expected)
    assert torch.equal(logits(load_packed(tmp_path / "packed")), expected)


def test_layers_that_stay_plain_compute_as_in_full_precision(tmp_path: Path) -> None:
    """transformers' detour for quantized time steps rounds the sum of step and bias."""
    torch.manual_seed(0)
    config = JambaConfig(
        vocab_size=272, hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, attn_layer_period=2, attn_layer_offset=1, num_experts=2, mamba_d_state=4,
        mamba_dt_rank=16, use_mamba_kernels=False, pad_token_id=0,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1:
            parameter.data.normal_(std=0.2)
        elif name.endswith("dt_proj.bias"):
            parameter.data.fill_(-4.1)
    model.save_pretrained(tmp_path / "full")
    pack_folder(tmp_path / "full", tmp_path / "packed")
    wanted = logits(fake_quantized(tmp_path / "full", R2Q))
    assert torch.equal(logits(load_packed(tmp_path / "packed")), wanted)
    assert torch.equal(logits(load_packed(tmp_path / "packed", dense=True)), wanted)


def test_packed_layers_are_held_against_dense_ones_without_a_cache(tmp_path: Path) -> None:
    """As they are evaluated: xLSTM's own defaults make a state of a wrong shape (transformers 5.23)."""
    config = xLSTMConfig(vocab_size=272, hidden_size=64, num_hidden_layers=2, num_heads=4)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "full")
    model = load_full(str(tmp_path / "full"))
    apply(make_method(R2Q), model, list_targets(model), torch.device("cpu"))
    save(model, None, tmp_path / "packed", dict(vars(R2Q)))
    dense = make_dense_checked(load_packed(tmp_path / "packed"))
    assert not any(isinstance(module, PackedWeight) for module in dense.modules())


def test_weights_below_the_smallest_scale_are_a_failed_layer(tmp_path: Path) -> None:
    for factor in (1e-9, 0.0):
        model = load_full(str(tiny_folder("llama", tmp_path / "full")))
        targets = list_targets(model)
        targets[3].weight.data *= factor
        if factor:
            with pytest.raises(ValueError, match=f"layer {targets[3].name}: .* below the smallest 16-bit scale"):
                apply(make_method(R2Q), model, targets, torch.device("cpu"))
        else:
            apply(make_method(R2Q), model, targets, torch.device("cpu"))


@pytest.mark.parametrize("head", [False, True])
def test_a_model_without_its_head(head: bool, tmp_path: Path) -> None:
    recipe = Recipe("r2q-g32", "r2q", "g32", lm_head=head)
    model, _ = pack_folder(tiny_folder("llama", tmp_path / "full"), tmp_path / "packed", recipe)
    bare = AutoModel.from_pretrained(tmp_path / "packed")
    with torch.no_grad():
        wanted = model.model(tokens()).last_hidden_state
        assert torch.equal(bare(tokens()).last_hidden_state, wanted)
        bare.save_pretrained(tmp_path / "bare")
        assert torch.equal(AutoModel.from_pretrained(tmp_path / "bare")(tokens()).last_hidden_state, wanted)
        classifier = AutoModelForSequenceClassification.from_pretrained(tmp_path / "bare")
        assert torch.equal(classifier.model(tokens()).last_hidden_state, wanted)


@pytest.mark.parametrize("head", [False, True])
def test_a_model_with_another_head(head: bool, tmp_path: Path) -> None:
    recipe = Recipe("r2q-g32", "r2q", "g32", lm_head=head)
    model, _ = pack_folder(tiny_folder("llama", tmp_path / "full"), tmp_path / "packed", recipe)
    classifier = AutoModelForSequenceClassification.from_pretrained(tmp_path / "packed", num_labels=3)
    with torch.no_grad():
        wanted = classifier.score(model.model(tokens()).last_hidden_state[:, -1])
    assert torch.equal(logits(classifier), wanted)
    classifier.save_pretrained(tmp_path / "classifier")
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "classifier")
    assert torch.equal(logits(again), wanted)


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_tracing_is_refused_in_one_sentence(packed: Path) -> None:
    layer, x = load_packed(packed).model.layers[0].mlp.up_proj, torch.randn(2, 64)
    with pytest.raises(RuntimeError, match="cannot follow packed layers"):
        torch.jit.trace(layer, x)


def test_only_what_transformers_reads_is_hashed(packed: Path) -> None:
    before = folder_digest(packed)
    for name in ("consolidated.safetensors", "model.fp16.safetensors", "notes.txt", "report.json"):
        (packed / name).write_bytes(b"x")
    assert folder_digest(packed) == before
    (packed / "tokenizer.json").write_text("{}")
    assert folder_digest(packed) != before
