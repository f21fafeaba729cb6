"""Every file that one verb writes and another reads: its fields, their units, who writes it and who reads it.

JSON (written by `r2q.kept.write_json`) holds one record, CSV one record a line. Both are written whole or not at all,
and so that equal records give equal bytes; both are read back with their types checked. Whoever cannot use a damaged
file computes it again: `r2q.intact.Damaged` is the one error that says so. Nothing here imports torch, and pandas only
to read.
"""

import csv
import io
import json
from collections.abc import Iterable, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields, is_dataclass, replace
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from pydantic import TypeAdapter, ValidationError

from r2q.failures import one_line
from r2q.intact import Damaged, check_signature
from r2q.kept import key, write_atomic, write_json

if TYPE_CHECKING:
    import pandas as pd

OK, FAILED, DIVERGED = "ok", "failed", "diverged"
Status = Literal["ok", "failed", "diverged"]  # diverged: a loss or gradient of the training was not finite
Format = Literal[2]  # of report.json and evaluation.json; a file of another format is made again
RAW, ITEMS, SAMPLES = "lm_eval.json", "items.json", "samples.jsonl"  # beside evaluation.json

Record = TypeVar("Record")


@dataclass(frozen=True)
class Facts:
    """What a recipe is, by its method and options and never by its name. In report.json; tables and claims read it."""

    # the method around a quantizer (gptq, bitdistiller, ...); None where the quantizer stands alone
    frame: str | None = None
    quantizer: str | None = None  # the method that chooses the levels: rtn, r2q, awq, ...
    variant: str = ""  # its options with a few values that are not the default, in words: `clip`, `alternating`; or ""
    start: str | None = None  # label of the recipe that training starts from, or None
    label: str = ""  # quantizer, variant and start: `rtn`, `rtn-clip`, `r2q-alternating`, `rtn (clipped start)`
    control: bool = False  # whether the recipe is a control (full precision, random codes), which competes with nothing
    kind: str = ""  # what it works from: `weights`, `calibration`, `training` or `checkpoint`
    # the quantizer's other options that are not the default: `{"rounds": 3}`
    settings: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Layer:
    """One quantized layer, in report.json; `collect` writes it to layers.csv (see `LayerRow`)."""

    name: str  # the module's name in the model
    shape: list[int]  # of its weight
    mse: float  # mean squared error of a weight
    relative_error: float  # squared error over squared weights, both summed
    bits_per_weight: float  # with scales
    seconds: float | None = None  # of quantizing it; None where layers are not quantized one by one
    status: str = OK
    output_error: float | None = None  # relative squared error of its output on held-out calibration windows
    clipped_error: float | None = None  # the part of it that lies beyond the outermost levels
    block: int | None = None
    kind: str = ""
    notes: dict[str, Any] = field(default_factory=dict)  # what the method says of it, by name


@dataclass(frozen=True, kw_only=True)
class _Result:
    """What both records of a unit have."""

    key: str  # hash of all that can move the result; the same key means the same result
    # status, reason: how it ended, and why where it is not ok (a sentence on one line, else "")
    status: Status
    reason: str
    versions: dict[str, str]
    hashes: dict[str, str | None]
    files: dict[str, int]  # bytes of every file of the result, by its path in the unit's folder
    cpu_seconds: float | None = None
    gpu_mib: float | None = None
    # whether the cause of a failure lies outside of what `key` holds (a missing file, memory): tried again
    retry: bool = False
    # hash of the part of the config, and of the code, that it was made with (`Plan.asked`); "" in older ones
    asked: str = ""
    # `limits` of the config that moved its last digits and are in no key: `threads` on a CPU, `training_processes` of a
    # unit that trains; nothing in older ones
    limits: dict[str, int] = field(default_factory=dict)
    format_version: Format = 2
    digest: str = ""  # hash of all other fields, so that an edited number is not taken for a result


@dataclass(frozen=True, kw_only=True)
class Report(_Result):
    """report.json of a unit: written by `quantize`; read by `evaluate`, `collect`, the lattice figure and the plan.

    Its cost is of quantizing, packing and writing the unit (see `r2q.measure.Measured`); `hashes` are sha256 of the
    packed weights, of the other `files`, of the source model, the code, the calibration tokens, the training rows.
    """

    model: str
    family: str
    recipe: str
    seed: int
    method: str
    granularity: str | None
    group_size: int | None
    bits: int | None  # of a code; None for a checkpoint that was quantized elsewhere
    options: dict[str, Any]
    facts: Facts
    bits_per_weight: float | None  # effective, over the quantized layers, with scales
    quantized_weights: int | None
    total_parameters: int | None
    # file_bytes, formula_bytes: of the weight files; of their tensors by formula
    file_bytes: int | None
    formula_bytes: int | None
    layers: list[Layer]
    notes: dict[str, Any]
    seconds: float
    peak_mib: float


@dataclass(frozen=True)
class TaskScore:
    """One number of a unit, in evaluation.json: a task's metric under one of its filters (see `Score` for the rest)."""

    task: str
    metric: str
    filter: str
    value: float | None
    stderr: float | None
    n: int | None
    chance: float | None
    majority: float | None
    higher_is_better: bool
    in_table: bool
    version: str
    num_fewshot: int | None = None
    status: Status = "ok"
    reason: str = ""
    output_type: str | None = None  # see `Score`


@dataclass(frozen=True, kw_only=True)
class Evaluation(_Result):
    """evaluation.json of a unit: written by `evaluate`, read by `collect` and the plan.

    Its `files` are lm_eval.json (raw results), items.json (by task and `metric,filter`, what every item gave), and
    samples.jsonl if asked; `hashes` are sha256 of the weights that were scored, of the tasks and texts with their data,
    of the code, and of `files`. Its cost is of the whole unit.
    """

    scores: list[TaskScore]
    seconds: float | None
    task_seconds: dict[str, float]
    peak_mib: float | None
    device: str | None
    dtype: str | None
    batch_size: int
    add_bos: bool | None
    seeds: dict[str, int]
    truncated: dict[str, int]  # prompts that were cut to the model's positions, by task


@dataclass(frozen=True)
class PinnedFile:
    """A file of a repository of the hub; `sha256` is of its content."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class Pinned:
    """A repository of the hub as one run reads it, in inputs.lock.json."""

    # kind, id: `model` or `dataset`, `owner/name`
    kind: Literal["model", "dataset"]
    id: str
    asked: str | None  # the revision that the config asks for; None: the newest
    commit: str  # what it was when it was fetched
    files: dict[str, PinnedFile] = field(default_factory=dict)  # all that is read of it, by path
    # of a data set, its files by split for each call (see `r2q.inputs.hub.call`)
    loads: dict[str, dict[str, list[str]]] = field(default_factory=dict)
    # the types of columns that its card states for a call; {} where it states none
    features: dict[str, dict[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class Inputs:
    """inputs.lock.json of a run: written by `fetch`; the plan and all that reads models or data of the hub read it."""

    pinned: list[Pinned]
    format_version: Literal[1] = 1
    digest: str = ""


@dataclass(frozen=True)
class Score:
    """A line of scores.csv, one number of the run: written by `collect`; tables, claims and comparisons read it.

    A unit without numbers is one line with an empty task.
    """

    run: str
    model: str
    family: str | None
    recipe: str
    method: str
    granularity: str | None
    group_size: int | None
    # bits_per_weight, file_bytes: of the unit's packed weights
    bits_per_weight: float | None
    file_bytes: int | None
    seed: int
    task: str | None
    metric: str | None
    value: float | None  # accuracies 0 to 1, perplexities by their metric's name; None where it is not finite
    stderr: float | None  # standard error over the n items
    n: int | None
    # chance, majority: value of guessing, and of always the most frequent answer
    chance: float | None
    majority: float | None
    higher_is_better: bool | None
    in_table: bool | None  # whether the main table shows it
    status: str
    seconds: float | None  # of the task (of the unit where it has no task)
    peak_mib: float | None  # of the unit's evaluation
    provenance: str  # key of provenance.json
    reason: str = ""
    # version, num_fewshot: of the task; numbers with other ones are not compared
    version: str | None = None
    num_fewshot: int | None = None
    # kind, frame, quantizer, control: see `Facts`; `quantizer` is its label
    kind: str = ""
    frame: str | None = None
    quantizer: str = ""
    control: bool = False
    # quantize_cpu_seconds, evaluate_cpu_seconds: of processors, for the whole unit; None in older runs
    quantize_cpu_seconds: float | None = None
    evaluate_cpu_seconds: float | None = None
    bits: int | None = None  # of a code; None where a checkpoint was quantized elsewhere, and in older runs
    # lm-eval's, `generate_until` say; several of a group's tasks with blanks between; None of a text, and in older runs
    output_type: str | None = None


@dataclass(frozen=True)
class Published:
    """A line of a CSV in results/published, one number that others published. See the README there for the columns."""

    model: str
    method: str
    quantizer: str
    bits: float | None
    group: str
    task: str
    metric: str
    num_fewshot: int | None
    window: int | None
    harness: str
    value: float | None
    stderr: float | None
    source: str
    mark: str
    tolerance: float | None
    conflict: bool
    note: str


@dataclass(frozen=True)
class Control:
    """A line of controls.csv: a number of full precision beside a published one. Written by `controls`."""

    model: str
    recipe: str
    task: str
    metric: str
    ours: float
    published: float
    tolerance: float
    agrees: bool
    source: str


@dataclass(frozen=True)
class ItemRow:
    """A line of items.csv: what every item of a task gave under a metric. Written by `collect`, read by comparisons."""

    model: str
    recipe: str
    seed: int
    task: str
    metric: str
    asked: str  # hash of the items; only numbers of the same items are compared one by one
    values: str  # of all items in the order of the task (see `r2q.report.items`)


@dataclass(frozen=True)
class LayerRow:
    """A line of layers.csv: a `Layer` of a unit. Written by `collect`, read by the weight-error figure.

    The notes of the methods follow as columns of their own.
    """

    run: str
    model: str
    recipe: str
    seed: int
    layer: str
    shape: str  # as 384x128
    # mse, relative_error: distances to the model's own weights; of methods that turn what layers read and give (a
    # rotation, say) they say nothing
    mse: float
    relative_error: float
    bits_per_weight: float
    seconds: float | None
    status: str
    block: int | None = None  # number of the decoder block, None outside of the blocks (the head)
    kind: str = ""  # what the layer is within its block, such as q_proj
    clipped_error: float | None = None


@dataclass(frozen=True)
class _Trained:
    """Columns of a unit that trained. `collect-training` puts them before the unit's own records of training."""

    run: str
    model: str
    recipe: str
    frame: str
    quantizer: str
    granularity: str
    seed: int
    steps: int  # that were asked for


@dataclass(frozen=True)
class Step(_Trained):
    """A line of training.csv, one step of a unit: written by the trainer; the training figure and claims read it."""

    step: float  # 0 is before training
    loss: float | None  # nats a token, as all losses and divergences here
    forward_kl: float | None
    reverse_kl: float | None
    gradient_norm: float | None  # before clipping
    learning_rate: float | None
    flipped: float | None  # part of the codes that this step changed
    tokens: float | None  # from the start
    seconds: float | None  # of the step, without held-out losses
    held_out_loss: float | None
    held_out_forward_kl: float | None
    held_out_reverse_kl: float | None


@dataclass(frozen=True)
class Gradient(_Trained):
    """A line of gradients.csv: norm of a layer's gradient at a step. Written by the trainer.

    `block` and `kind` are as in `LayerRow`.
    """

    step: int
    layer: str
    block: int | None
    kind: str
    gradient_norm: float


@dataclass(frozen=True)
class Drift(_Trained):
    """A line of drift.csv, one layer of a unit: written by the trainer; the drift figure and claims read it.

    All but `weights` are mean squares over these.
    """

    layer: str
    block: int | None
    kind: str
    weights: float | None  # how many
    power: float | None  # of the full-precision weights
    latent_before: float | None  # distance to these, of latent and quantized weights before and after training
    quantized_before: float | None
    latent_after: float | None
    quantized_after: float | None
    latent_moved: float | None  # by training


@dataclass(frozen=True)
class Latency:
    """A line of latency.csv: what a packed checkpoint takes, or its twin. Written by `latency`, read by the table.

    A checkpoint that cannot be timed is one line without numbers.
    """

    run: str
    model: str
    recipe: str
    seed: int
    weights: str = "packed"  # or `dense`: the same model with every weight decoded once, 16 bits each
    phase: str = ""  # `decode`: one token of each row, after `context` others; `prefill`: a pass over `context` tokens
    batch: int | None = None  # rows at once
    context: int | None = None
    compiled: bool | None = None  # whether through torch.compile
    device: str = ""
    dtype: str = ""
    median_ms: float | None = None
    first_quartile_ms: float | None = None
    third_quartile_ms: float | None = None
    tokens_per_second: float | None = None
    peak_bytes: int | None = None  # of the GPU; None on a CPU
    weight_bytes_read: int | None = None  # in one pass
    share_of_copy_bandwidth: float | None = None  # of these bytes in the time of a step; None on a CPU
    reason: str = ""  # why there is no number


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def write_record(path: str | Path, record: Any) -> None:
    """A report or evaluation as JSON, with its digest; raises ValueError for NaN: JSON has none."""
    write_json(path, replace(record, digest=digest(asdict(record))))


def digest(data: dict[str, Any]) -> str:
    """Hash of all fields but `digest`, as JSON has them."""
    return key(json.loads(json.dumps({name: value for name, value in data.items() if name != "digest"})))


def read_json(path: str | Path, kind: type[Record]) -> Record:
    """The record of type `kind` in a JSON file.

    Raises:
        FileNotFoundError: no such file.
        Damaged: it is not JSON, or lacks a field, or a field is of another type or was edited.
    """
    path = Path(path)
    try:
        content = path.read_bytes()
        record = _adapter(kind).validate_json(content)  # type: ignore[arg-type]
        if (noted := getattr(record, "digest", "")) and noted != digest(json.loads(content)):
            raise Damaged(f"{path}: damaged: it is not what was written")
        return record
    except FileNotFoundError:
        raise FileNotFoundError(f"no file {path}") from None
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise Damaged(f"{path}: damaged: {f'{where}: ' if where else ''}{one_line(first['msg'])}") from None


def read_if_whole(path: str | Path, kind: type[Record]) -> Record | None:
    """`read_json`, or None where the file is missing or damaged and will be made again; a damaged one is named."""
    try:
        return read_json(path, kind)
    except FileNotFoundError:
        return None
    except Damaged as error:
        print(f"{error}; it is made again", flush=True)
        return None


def columns(kind: type) -> list[str]:
    """The columns of a CSV of such records, in order."""
    return [part.name for part in fields(kind)]


def columns_of_trainer(kind: type[_Trained]) -> list[str]:
    """Those that the trainer writes of them; `collect-training` knows the unit, and where a layer stands."""
    return [name for name in columns(kind) if name not in (*columns(_Trained), "block", "kind")]


def write_csv(path: str | Path, columns: Sequence[str], rows: Iterable[Any]) -> None:
    """Write records or mappings with exactly `columns`; raises ValueError for a field that is not among them.

    Floats are their shortest exact decimals, None is an empty field, lines end with a line feed.
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval=None, lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(row) if is_dataclass(row) and not isinstance(row, type) else row for row in rows)
    write_atomic(path, text.getvalue())


def read_csv(path: str | Path, kind: type) -> "pd.DataFrame":
    """A CSV of records of type `kind`, perhaps with more columns; an empty number is NaN / NA, an empty text is "".

    A further column holds numbers where all of its fields are numbers or empty; one that has a default may be missing.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is no CSV, a column is missing, or a field is not of its column's type.
        Damaged: the file is not as its verb wrote it (see `sign`).
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}")
    check_signature(path)
    frame = _texts(path)
    for part in fields(kind):
        if part.default is not MISSING and part.name not in frame.columns:
            frame[part.name] = "" if part.default is None else str(part.default)
    _check_columns(path, frame, columns(kind))
    types = _types(kind)
    for name in frame.columns:
        try:
            frame[name] = _typed(types.get(name), frame[name])
        except ValueError as error:
            raise ValueError(f"{path}, column {name}: {error}") from None
    return frame


@cache
def _types(kind: type) -> dict[str, type]:
    """The type of every field, without `| None`."""
    types = {}
    for name, hint in get_type_hints(kind).items():
        plain = [part for part in get_args(hint) if part is not NoneType] if get_origin(hint) is UnionType else [hint]
        types[name] = plain[0]
    return types


def read_drawn(path: str | Path, columns: Sequence[str]) -> "pd.DataFrame":
    """The CSV of a figure: columns of numbers, of flags or of texts, by what is in them.

    Raises:
        ValueError: it is no CSV, or a column is missing.
    """
    frame = _texts(path)
    _check_columns(path, frame, columns)
    for name in frame.columns:
        flags = set(frame[name]) <= {"True", "False"} and len(frame) > 0
        frame[name] = _typed(bool if flags else None, frame[name])
    return frame


def _texts(path: str | Path) -> "pd.DataFrame":
    """A CSV whose fields are all texts."""
    import pandas as pd

    try:
        return pd.read_csv(path, dtype="str", keep_default_na=False)
    except ValueError as error:  # empty, with rows of several lengths, or bytes that are no text
        raise ValueError(f"{path}: no CSV ({one_line(error)})") from None


def _check_columns(path: str | Path, frame: "pd.DataFrame", needed: Sequence[str]) -> None:
    if missing := [name for name in needed if name not in frame.columns]:
        raise ValueError(f"{path} has no column {', '.join(missing)}; it has {', '.join(frame.columns) or 'none'}")


def _typed(kind: type | None, texts: "pd.Series") -> Any:
    import pandas as pd

    if kind is None:  # a further column: what a method said
        try:
            return _typed(float, texts) if texts.any() else texts
        except ValueError:
            return texts
    if kind is float:
        return texts.map(lambda text: float(text) if text else float("nan")).astype("float64")
    if kind is int:
        return pd.array([int(text) if text else None for text in texts], dtype="Int64")
    if kind is bool:
        flags = {"True": True, "False": False, "": None}
        wrong = next((text for text in texts if text not in flags), None)
        if wrong is not None:
            raise ValueError(f"{wrong!r} is neither True nor False")
        return pd.array([flags[text] for text in texts], dtype="boolean")
    return texts
