"""Writes the small world to a folder: `python -m mini.world --out DIR [--models mini/models]`.

DIR/tasks/*.yaml and *.jsonl are lm-eval tasks, DIR/train.txt a sample of the text that the models were trained on (one
document per line, for calibration), DIR/world.json says what was written. Standard library only.
"""

import argparse
import hashlib
import json
import sys
from pathlib import Path
from random import Random
from typing import Any

from mini import facts, tasks
from mini.text import Writer
from r2q.kept import write_atomic

TRAIN_DOCUMENTS = 10_000  # in train.txt
MODEL_NAMES = ("mini-llama", "mini-opt", "mini-qwen", "mini-llama-fp-small")


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def contents() -> dict[str, bytes]:
    """The files that do not depend on where they are written: train.txt and the items of each task."""
    world = facts.build()
    lines = Writer(world).documents(Random(f"train.txt/{facts.SEED}"), TRAIN_DOCUMENTS)
    files = {"train.txt": "".join(f"{line}\n" for line in lines).encode()}
    for name, items in tasks.items(world).items():
        rows = (json.dumps(item, ensure_ascii=False, sort_keys=True) for item in items)
        files[f"tasks/{name}.jsonl"] = "".join(f"{row}\n" for row in rows).encode()
    return files


def world_sha256(files: dict[str, bytes]) -> str:
    """The identity of the world: the hash of a sample of its text, which every fact and every wording shapes.

    Items are not part of it: they ask about the same facts, and a model does not depend on them.
    """
    return sha256(files["train.txt"])


def summary(files: dict[str, bytes], out: str) -> dict[str, Any]:
    """What world.json says: identity, counts, and the scores that knowing nothing gives."""
    described = {}
    for task in tasks.TASKS:
        items = [json.loads(line) for line in files[f"tasks/{task.name}.jsonl"].splitlines()]
        entry: dict[str, Any] = {"items": len(items), "like": task.like, "output_type": task.output_type}
        if task.output_type == "multiple_choice":
            labels = [item["label"] for item in items]
            entry["chance"] = 1 / len(items[0]["choices"])
            entry["majority"] = max(labels.count(label) for label in set(labels)) / len(labels)
        described[task.name] = entry
    return {
        "version": facts.VERSION,
        "seed": facts.SEED,
        "world_sha256": world_sha256(files),
        "people": facts.PEOPLE,
        "train_documents": TRAIN_DOCUMENTS,
        "tasks": described,
        "files": {name: sha256(data) for name, data in sorted((files | task_files(out)).items())},
    }


def task_files(out: str) -> dict[str, bytes]:
    """The lm-eval task files; lm-eval finds their data from the folder that it is started in."""
    return {f"tasks/{t.name}.yaml": tasks.yaml(t, f"{out}/tasks/{t.name}.jsonl").encode() for t in tasks.TASKS}


def model_problem(folder: Path, world_hash: str) -> str | None:
    """Why this checkpoint does not belong to this world, or None."""
    again = "run python -m mini.pretrain"
    try:
        provenance = json.loads((folder / "provenance.json").read_text(encoding="utf-8"))
        trained_on = provenance["world_sha256"]
        recorded = {name: provenance[key] for key, name in HASHED_FILES.items()}
    except (OSError, ValueError, KeyError) as error:
        return f"{folder}/provenance.json cannot be read ({error}): {again}"
    if trained_on != world_hash:
        return f"{folder} was trained on world {trained_on[:12]}, this is world {world_hash[:12]}: {again}"
    for name, noted in recorded.items():
        path = folder / name
        if not path.is_file():
            return f"{path} is missing: {again}"
        digest = sha256(path.read_bytes())
        if digest != noted:
            return f"{path} has sha256 {digest[:12]}, its provenance.json says {noted[:12]}: {again}"
    return None


# provenance.json key -> file in the model's folder
HASHED_FILES = {"tokenizer_sha256": "tokenizer.json", "weights_sha256": "model.safetensors"}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m mini.world", description=__doc__)
    parser.add_argument("--out", required=True, help="folder to write")
    parser.add_argument("--models", type=Path, help="folder of checkpoints that must belong to this world")
    options = parser.parse_args(arguments)
    files = contents()
    world_hash = world_sha256(files)
    if options.models:
        problems = [model_problem(options.models / name, world_hash) for name in MODEL_NAMES]
        for problem in filter(None, problems):
            sys.exit(f"mini.world: {problem}")
    out = options.out.rstrip("/")
    written = files | task_files(out)
    written["world.json"] = (json.dumps(summary(files, out), indent=2) + "\n").encode()
    for name, data in written.items():
        write_atomic(Path(out, name), data)  # another run may be reading the file
    print(f"world {world_hash[:12]}: {len(written)} files in {out}")


if __name__ == "__main__":
    main()
