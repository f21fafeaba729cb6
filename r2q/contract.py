"""What every method promises, as checks on a tiny random Llama: for our tests, and for methods of other packages.

A check is a function of a recipe and a bench, and raises `Broken` with a sentence.
"""

import copy
import math
import re
import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from transformers import LlamaConfig, LlamaForCausalLM

from r2q.config import FACTS, Config, ConfigError, describe, group_size, method_info
from r2q.config.base import GRANULARITY
from r2q.models.apply import FAILURES, apply
from r2q.models.calibration import Calibration, tokens_sha256
from r2q.models.load import load_packed
from r2q.models.save import save
from r2q.models.targets import list_targets
from r2q.quantization.method import Method, Recipe, WeightMethod, check_pure, make_method
from r2q.training.data import Rows, TrainingData
from r2q.training.fake_quant import FakeQuantizer

WIDTH, VOCABULARY, WINDOW = 64, 272, 16
WIDE = "model.layers.1.mlp.down_proj"  # a layer of two groups a row at the least


class Broken(AssertionError):
    """A promise that a method does not keep, in a sentence."""


class Bench:
    """A tiny model, text and rows, all random and always the same."""

    _last: tuple[Recipe, Any, list[dict[str, Any]]] | None = None

    @cached_property
    def _model(self) -> Any:
        config = LlamaConfig(
            vocab_size=VOCABULARY, hidden_size=WIDTH, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
            intermediate_size=2 * WIDTH, max_position_embeddings=WIDTH,
        )  # fmt: skip
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return LlamaForCausalLM(config).eval()

    def model(self) -> Any:
        """A copy that may be changed."""
        return copy.deepcopy(self._model)

    def tokens(self, rows: int = 2) -> torch.Tensor:
        """Random tokens [rows, WINDOW]."""
        return torch.randint(3, VOCABULARY, (rows, WINDOW), generator=torch.Generator().manual_seed(rows))

    def calibration(self) -> Calibration:
        """Six windows of text and one held out."""
        tokens = self.tokens(7)
        facts = {"source": "random", "seed": "0", "first_token": "3", "sha256": tokens_sha256(tokens[:6], tokens[6:])}
        return Calibration(tokens[:6], tokens[6:], facts, minimum_tokens=8)

    def rows(self) -> TrainingData:
        """16 rows to train on and 8 held out."""
        rows = Rows(self.tokens(24), torch.full((24,), 4), torch.full((24,), WINDOW))
        return TrainingData(rows[slice(0, 16)], rows[slice(16, 24)], "generated", "none", None)

    def quantized(self, recipe: Recipe) -> tuple[Any, list[dict[str, Any]]]:
        """The quantized model, and what is said of its layers; the last recipe's is kept for the next check."""
        if self._last is None or self._last[0] != recipe:
            self._last = recipe, *self.quantize(recipe, self.model())
        return self._last[1:]

    def quantize(self, recipe: Recipe, model: Any) -> tuple[Any, list[dict[str, Any]]]:
        """A model quantized in place, and what is said of its layers."""
        method = make_method(recipe)
        text, rows = self.data(method)
        layers, _ = apply(method, model, list_targets(model), torch.device("cpu"), text, rows)
        return model, layers

    def data(self, method: Method) -> tuple[Calibration | None, TrainingData | None]:
        """What a method works from besides the weights."""
        return (
            self.calibration() if method.needs == "calibration" else None,
            self.rows() if method.needs == "training" else None,
        )


def _need(holds: bool, sentence: str) -> None:
    if not holds:
        raise Broken(sentence)


def every_layer_is_quantized(recipe: Recipe, bench: Bench) -> None:
    """Every target has a quantized weight."""
    _, layers = bench.quantized(recipe)
    missing = {target.name for target in list_targets(bench.model())} ^ {layer["name"] for layer in layers}
    _need(not missing, f"targets and quantized layers differ: {', '.join(sorted(missing))}")


def few_levels_in_the_bits_of_the_formula(recipe: Recipe, bench: Bench) -> None:
    """At most 2^bits values a group; stored bytes are those of the formula."""
    model, layers = bench.quantized(recipe)
    for layer in layers:
        weight, name = model.get_submodule(layer["name"]).quantized(), layer["name"]
        values = replace(weight, in_scale=None).dequantize()
        for group in values.reshape(-1, values.numel() // math.prod(weight.grid.shape)):
            count = len(group.unique())
            _need(count <= 2**recipe.bits, f"{name}: a group has {count} values, and {recipe.bits} bits hold fewer")
        rows, groups = weight.grid.shape
        formula = recipe.bits * values.numel() + rows * groups * weight.grid.side_bits
        formula += 0 if weight.in_scale is None else 16 * values.shape[-1]
        rounding = 7 if "zero" in weight.grid.tensors() else 0  # packed zero points end in a whole byte
        stored = 8 * weight.nbytes
        _need(formula <= stored <= formula + rounding, f"{name}: {stored} bits are stored, {formula} by the formula")
        said = layer["bits_per_weight"]
        _need(math.isclose(said, formula / values.numel()), f"{name}: {said} bits a weight are said, not stored")


def the_same_bits_after_saving(recipe: Recipe, bench: Bench) -> None:
    """Logits are the same to the bit after packing, saving and loading."""
    model, _ = bench.quantized(recipe)
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        save(model, None, Path(folder) / "packed", dict(vars(recipe)))
        loaded = load_packed(Path(folder) / "packed")(bench.tokens()).logits
        finite, same = bool(loaded.isfinite().all()), torch.equal(loaded, model(bench.tokens()).logits)
    _need(finite, "logits are not finite")
    _need(same, "logits change when the model is saved and loaded")


def the_same_seed_gives_the_same_bits(recipe: Recipe, bench: Bench) -> None:
    """And another seed gives others only where the class says `stochastic`."""
    one, again = (model.state_dict() for model, _ in (bench.quantized(recipe), bench.quantize(recipe, bench.model())))
    _need(all(torch.equal(one[key], again[key]) for key in one), "the same seed gives other weights")
    other = bench.quantize(replace(recipe, seed=recipe.seed + 1), bench.model())[0].state_dict()
    same, stochastic = all(torch.equal(one[key], other[key]) for key in one), method_info(recipe.method).stochastic
    which = "the same" if same else "other"
    _need(same != stochastic, f"another seed gives {which} weights, and stochastic is {stochastic}")


def what_is_read_is_the_class(recipe: Recipe, bench: Bench) -> None:
    """What the check of a config reads of the file, without running it, is what the class says."""
    info, method = method_info(recipe.method), make_method(recipe)
    _need(info.options.model_json_schema() == method.Options.model_json_schema(), "Options are read as others")
    for fact in FACTS:
        _need(getattr(info, fact) == getattr(method, fact), f"{fact} is read as {getattr(info, fact)}")
    _need(info.weight_method == isinstance(method, WeightMethod), "whether it is a WeightMethod is read wrongly")


def an_unknown_option_is_refused(recipe: Recipe, bench: Bench) -> None:
    """Options are closed."""
    try:
        make_method(replace(recipe, options=recipe.options | {"no_such_option": 1}))
    except ValidationError as error:
        _need("no_such_option" in str(error), "the error about an unknown option does not name it")
    else:
        raise Broken("an unknown option is taken without a word")


def weights_stay_untouched(recipe: Recipe, bench: Bench) -> None:
    """A method leaves the model that it is given as it is; what it changes is in its result."""
    method, model = make_method(recipe), bench.model()
    before, (text, rows) = copy.deepcopy(model.state_dict()), bench.data(method)
    method.quantize(model, list_targets(model), text or rows)
    changed = [name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])]
    _need(not changed, f"quantize changes {', '.join(changed[:1])} of the model that it is given")


def a_group_that_does_not_divide_is_refused(recipe: Recipe, bench: Bench) -> None:
    """With the layer's name."""
    try:
        bench.quantize(replace(recipe, granularity="g48"), bench.model())
    except FAILURES as error:
        missing = [word for word in ("group size 48", "model.layers.0.") if word not in str(error)]
        _need(not missing, f"the error does not say {missing[:1]}: {error}")
    else:
        raise Broken("no error says 'group size 48'")


def problems(recipe: Recipe) -> list[str]:
    """What the options say against the recipe's bits and granularity, in a run without texts."""
    options = method_info(recipe.method).options.read(recipe.options)
    return options.problems(recipe, Config.model_construct(calibration=None, training=None))


def a_group_is_quantized_by_itself(recipe: Recipe, bench: Bench) -> None:
    """Whatever was quantized before it, and beside it: weights come in parts, and in training many at once."""
    method: Any = make_method(recipe)
    weight = list_targets(bench.model())[0].weight
    rows = len(weight) // 2
    asked = (weight, weight[:rows], 2 * weight, weight)
    first, part, _, again = (method.quantize_weight(values).dequantize() for values in asked)
    _need(torch.equal(first, again), "a weight gives other numbers after another one was quantized")
    trained = FakeQuantizer(method, "weight").run(weight).values
    _need(torch.equal(first, trained), "fit_groups and encode_groups give other numbers than quantize_weight")
    if recipe.granularity != "tensor" and type(method).begin is WeightMethod.begin:  # random ones come in one stream
        _need(
            torch.equal(first[:rows], part), "groups of a part of the rows get other numbers than in the whole weight"
        )
    try:
        check_pure(method, recipe.in_groups(bench.model().get_submodule(WIDE).weight.detach(), WIDE))
    except ValueError as error:
        raise Broken(f"it {error}") from None


def more_bits_mean_less_error(recipe: Recipe, bench: Bench) -> None:
    """At 2, 3 and 4 bits, or those of them that the options do not refuse."""
    fitting = [bits for bits in (2, 3, 4) if not problems(replace(recipe, bits=bits))]
    only = "what has certain bits only says so in `problems` of its Options"
    errors = []
    for bits in fitting:
        try:
            described = bench.quantize(replace(recipe, bits=bits), bench.model())[1]
        except FAILURES as error:
            if bits == recipe.bits:  # no matter of bits
                raise
            raise Broken(f"at {bits} bits: {error}; {only}") from None
        errors.append(sum(layer["relative_error"] for layer in described))
    less = all(before > after for before, after in pairwise(errors))
    _need(less, f"the errors at {', '.join(map(str, fitting))} bits are {errors}; {only}")


Check = Callable[[Recipe, Bench], None]
CHECKS: tuple[Check, ...] = (
    what_is_read_is_the_class,
    an_unknown_option_is_refused,
    every_layer_is_quantized,
    few_levels_in_the_bits_of_the_formula,
    the_same_bits_after_saving,
    the_same_seed_gives_the_same_bits,
    a_group_that_does_not_divide_is_refused,
    weights_stay_untouched,
    a_group_is_quantized_by_itself,
    more_bits_mean_less_error,
)


def checks_of(recipe: Recipe) -> list[Check]:
    """The checks that a recipe has to pass: those of bits and of single groups only for a function of one weight."""
    info = method_info(recipe.method)
    checks, apart = CHECKS if info.quantizes else CHECKS[:2], list[Check]()
    if info.control or not info.weight_method:
        apart.append(more_bits_mean_less_error)
    if not info.weight_method:
        apart.append(a_group_is_quantized_by_itself)
    return [check for check in checks if check not in apart]


def check_method(name: str, granularity: str, bits: int, options: dict[str, Any]) -> int:
    """Run every check on a method and print how each ended; the number of those that failed.

    Raises:
        ConfigError: the name leads to no method, or the options are not its.
    """
    if not re.fullmatch(GRANULARITY, granularity):
        raise ConfigError(f"granularity: {granularity} is none of g<size>, channel, tensor")
    if WIDTH % (group_size(granularity) or 1):
        raise ConfigError(
            f"granularity: {granularity} does not divide the {WIDTH} input features of the model to check on"
        )
    info = method_info(name.replace(":", "."))
    if info.needs == "checkpoint":
        raise ConfigError(f"{name} quantizes nothing by itself: there is nothing to check")
    try:
        chosen = info.options.read(options).model_dump(mode="json")
    except ValidationError as error:
        raise ConfigError("\n".join(f"options.{line}" for line in describe(error, info.options))) from None
    recipe = Recipe(info.name, name.replace(":", "."), granularity if info.quantizes else None, bits, 0, chosen)
    if wrong := problems(recipe):
        raise ConfigError("; ".join(wrong))
    bench, failed, said = Bench(), 0, set[str]()
    for check in checks_of(recipe):
        words = check.__name__.replace("_", " ")
        try:
            check(recipe, bench)
        except (Exception, SystemExit) as error:  # whatever somebody's method raises is an answer
            failed += 1
            why = f"{'' if isinstance(error, Broken) else f'{type(error).__name__}: '}{error}"
            print(f"FAILED  {words}: {why if why not in said else 'the same'}")
            said.add(why)
        else:
            print(f"ok      {words}")
    print(f"{name}, {granularity}, {bits} bits: {'all promises kept' if not failed else f'{failed} broken'}")
    return failed
