"""Tiny random models, hand-made tasks and configs for the tests of evaluation."""

import json
import lzma
from pathlib import Path
from typing import Any

import yaml

from tests.models.tiny import byte_tokenizer, tiny_model

POSITIONS = 160  # one token a byte


def model(case: str = "llama", seed: int = 0, positions: int = POSITIONS) -> Any:
    """A random model whose logits differ clearly, with one token a byte."""
    return tiny_model(case, seed=seed, max_position_embeddings=positions, initializer_range=0.1, init_std=0.1)


def model_folder(folder: Path, case: str = "llama", seed: int = 0, positions: int = POSITIONS) -> Path:
    """The same as a folder in Hugging Face layout."""
    model(case, seed, positions).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Rows as JSON lines, compressed when the name ends in .xz."""
    path.parent.mkdir(parents=True, exist_ok=True)
    data = "".join(json.dumps(row) + "\n" for row in rows).encode()
    path.write_bytes(lzma.compress(data) if path.suffix == ".xz" else data)
    return path


def choice_rows(count: int = 8, choices: int = 3) -> list[dict[str, Any]]:
    """Multiple-choice items whose gold index goes round."""
    return [
        {
            "q": f"Where does number {i * 37 % 11} live",
            "c": [f"in house {(i + 2) * (j + 3) % 13}" for j in range(choices)],
            "gold": i % choices,
        }
        for i in range(count)
    ]


def write_task(folder: Path, name: str, rows: list[dict[str, Any]], **settings: Any) -> Path:
    """A task file with its data beside it; multiple choice unless `settings` say else."""
    write_jsonl(folder / f"{name}.jsonl", rows)
    task = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": f"{name}.jsonl"}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "Question: {{q}}?\nAnswer:",
        "doc_to_choice": "c",
        "doc_to_target": "gold",
        "metric_list": [
            {"metric": "acc", "aggregation": "mean", "higher_is_better": True},
            {"metric": "acc_norm", "aggregation": "mean", "higher_is_better": True},
        ],
        "metadata": {"version": 1.0},
    }
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump({k: v for k, v in (task | settings).items() if v is not ...}))
    return path


def write_text_task(folder: Path, name: str, texts: list[str]) -> Path:
    """A rolling-perplexity task."""
    metrics = [
        {"metric": "word_perplexity", "aggregation": "weighted_perplexity", "higher_is_better": False},
        {"metric": "bits_per_byte", "aggregation": "bits_per_byte", "higher_is_better": False},
    ]
    return write_task(
        folder,
        name,
        [{"text": text} for text in texts],
        output_type="loglikelihood_rolling",
        doc_to_text="",
        doc_to_target="text",
        doc_to_choice=...,
        metric_list=metrics,
    )


def write_sum_task(folder: Path, name: str, count: int = 5, **settings: Any) -> Path:
    """A generation task with exact match."""
    return write_task(
        folder,
        name,
        [{"q": f"{i} plus {i}", "a": str(2 * i)} for i in range(count)],
        output_type="generate_until",
        doc_to_target="{{a}}",
        doc_to_choice=...,
        generation_kwargs={"until": ["\n"], "max_gen_toks": 6, "do_sample": False},
        metric_list=[{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
        **settings,
    )


def config_data(models: dict[str, Any], tasks: dict[str, Any], **settings: Any) -> dict[str, Any]:
    """A config with full precision and round-to-nearest."""
    return {
        "run": "trial",
        "models": models,
        "recipes": {"full_precision": {"method": "full_precision"}, "rtn-g64": {"method": "rtn", "granularity": "g64"}},
        "tasks": tasks,
        "device": "cpu",
        "limits": {"batch_size": 4},
    } | settings
