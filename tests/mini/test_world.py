"""The world: same bytes everywhere, nothing asked stands in the text, what is asked was taught, answers are right.

Answers are checked by parsing the sentences back into facts, not by asking the code that wrote them.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from random import Random
from typing import Any

import pytest

from mini import facts, phrases, words, world
from mini.text import Writer

REPOSITORY = Path(__file__).parents[2]
SAMPLE_DOCUMENTS = 40_000
FIELD = {
    "n": r"(?P<n>[A-Z]\w+ [A-Z]\w+)",
    "m": r"(?P<m>[A-Z]\w+ [A-Z]\w+)",
    "g": r"[A-Z]\w+ [A-Z]\w+",
    "v": r"(?P<v>\w+)",
}
MODEL_FOLDERS = sorted((REPOSITORY / "mini/models").glob("mini-*"))


def pattern(template: str, **fields: str) -> re.Pattern[str]:
    """A sentence pattern as a regular expression; of a field that comes twice, the first is kept."""
    parts = re.split(r"\{(\w)\}", template)
    seen: set[str] = set()
    text = ""
    for index, part in enumerate(parts):
        if index % 2 == 0:
            text += re.escape(part)
        else:
            text += (FIELD | fields)[part] if part not in seen else rf"(?P={part})"
            seen.add(part)
    return re.compile(text)


def plain(sentence: str) -> str:
    return " ".join(re.findall(r"\w+", sentence.lower()))


@pytest.fixture(scope="module")
def files() -> dict[str, bytes]:
    return world.contents()


@pytest.fixture(scope="module")
def items(files: dict[str, bytes]) -> dict[str, list[dict[str, Any]]]:
    return {
        name.removeprefix("tasks/").removesuffix(".jsonl"): [json.loads(line) for line in data.splitlines()]
        for name, data in files.items()
        if name.endswith(".jsonl")
    }


@pytest.fixture(scope="module")
def documents(files: dict[str, bytes]) -> list[str]:
    return (
        list(Writer(facts.build()).documents(Random("sample"), SAMPLE_DOCUMENTS))
        + files["train.txt"].decode().splitlines()
    )


@pytest.fixture(scope="module")
def taught(documents: list[str]) -> dict[tuple[str, str], set[str]]:
    """(name or goal, attribute) -> values, read out of the training text by regular expressions."""
    found: dict[tuple[str, str], set[str]] = {}
    sentences = {sentence for line in documents for sentence in re.split(r"(?<=\.) ", line)}
    templates = [
        (attribute, pattern(template)) for attribute, p in phrases.PHRASES.items() for template in p.statements
    ]
    starts = [("goal", pattern(template, x=r"(?P<x>\w+)", y=r"(?P<y>\w+)")) for template in phrases.GOALS]
    activity = r"(?P<a>[a-z ]+?)"
    next_ = [
        ("next", pattern(t, a=activity, b=activity.replace("<a>", "<b>"), p="(?:she|he)")) for t in phrases.ROUTINES
    ]
    for sentence in sentences:
        for attribute, expression in [*templates, *starts, *next_]:
            match = expression.fullmatch(sentence)
            if match and attribute == "goal":
                found.setdefault((f"{match['x']} {match['y']}", "goal"), set()).add(match["v"])
            elif match and attribute == "next":
                found.setdefault((match["n"], match["a"]), set()).add(match["b"])
            elif match:
                found.setdefault((match["n"], attribute), set()).add(match["v"])
    return found


def test_bytes_do_not_depend_on_the_hash_seed(tmp_path: Path) -> None:
    digests = set()
    for seed in ("1", "2"):
        command = [sys.executable, "-m", "mini.world", "--out", f"out{seed}"]
        environment = os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": str(REPOSITORY)}
        subprocess.run(command, check=True, cwd=tmp_path, env=environment)
        written = [*(tmp_path / f"out{seed}/tasks").glob("*.jsonl"), tmp_path / f"out{seed}/train.txt"]
        digests.add(world.sha256(b"".join(path.read_bytes() for path in sorted(written))))
        described = json.loads((tmp_path / f"out{seed}/world.json").read_text())
        for name, digest in described["files"].items():
            assert world.sha256((tmp_path / f"out{seed}" / name).read_bytes()) == digest
    assert len(digests) == 1


def test_the_interpreter_needs_only_the_standard_library(tmp_path: Path) -> None:
    code = "import sys; sys.path.insert(0, sys.argv[1]); import mini.world; mini.world.main(['--out', 'w'])"
    subprocess.run([sys.executable, "-I", "-S", "-c", code, str(REPOSITORY)], check=True, cwd=tmp_path)


def sentences_found(sentences: set[str], documents: list[str]) -> set[str]:
    """Which sentences stand anywhere in the documents, as whole words; looked up by their first four words."""
    by_start: dict[tuple[str, ...], list[list[str]]] = {}
    for sentence in sentences:
        words_ = sentence.split()
        by_start.setdefault(tuple(words_[:4]), []).append(words_)
    found = set()
    for document in documents:
        text = plain(document).split()
        for index, start in enumerate(zip(text, text[1:], text[2:], text[3:], strict=False)):
            for candidate in by_start.get(start, ()):
                if text[index : index + len(candidate)] == candidate:
                    found.add(" ".join(candidate))
    return found


def test_no_evaluated_sentence_stands_in_training_text(
    items: dict[str, list[dict[str, Any]]], documents: list[str]
) -> None:
    evaluated = {plain(item["context"]) for task in items.values() for item in task if "context" in item}
    evaluated |= {plain(item["context"].split(" Question: ")[0]) for item in items["mini_yesno"]}
    evaluated |= {plain(item["context"].split(" Question: ")[1]) for item in items["mini_yesno"]}
    for item in items["mini_text"]:
        evaluated |= {plain(sentence) for sentence in re.split(r"(?<=\.) ", item["text"])[:3]}
        evaluated.add(plain(item["text"].split(". ")[3]))
    assert len(evaluated) > 4000
    assert min(len(sentence.split()) for sentence in evaluated) >= 4
    assert sentences_found(evaluated, documents) == set()
    known = {plain(documents[0]), plain(documents[-1])}
    assert sentences_found(known, documents) == known  # the search does find what is there


def test_facts_were_taught_in_other_words_and_answers_are_right(
    items: dict[str, list[dict[str, Any]]], taught: dict[tuple[str, str], set[str]]
) -> None:
    questions = [(attribute, pattern(t)) for attribute, p in phrases.PHRASES.items() for t in p.questions]
    for item in items["mini_facts"]:
        asked = item["context"].removeprefix("Question: ").removesuffix(" Answer:")
        [(name, attribute)] = {
            (match["n"], attribute) for attribute, expression in questions if (match := expression.fullmatch(asked))
        }
        assert taught[name, attribute] == {item["choices"][item["label"]]}


def test_tools_were_taught_in_other_words_and_answers_are_right(
    items: dict[str, list[dict[str, Any]]], taught: dict[tuple[str, str], set[str]]
) -> None:
    goals = [pattern(t.removesuffix(" {v}."), x=r"(?P<x>\w+)", y=r"(?P<y>\w+)") for t in phrases.GOALS]
    for item in items["mini_tools"]:
        [match] = [match for expression in goals if (match := expression.fullmatch(item["context"]))]
        assert taught[f"{match['x']} {match['y']}", "goal"] == {item["choices"][item["label"]]}


def test_next_steps_were_taught_in_other_words_and_answers_are_right(
    items: dict[str, list[dict[str, Any]]], taught: dict[tuple[str, str], set[str]]
) -> None:
    starts = [pattern(t.removesuffix(" {b}."), a="(?P<a>[a-z ]+?)", p="(?:she|he)") for t in phrases.ROUTINES]
    for item in items["mini_next"]:
        matches = [match for expression in starts if (match := expression.fullmatch(item["context"]))]
        [answer] = {value for match in matches for value in taught.get((match["n"], match["a"]), ())}
        assert answer == item["choices"][item["label"]]


def test_who_is_right(items: dict[str, list[dict[str, Any]]], taught: dict[tuple[str, str], set[str]]) -> None:
    clauses = {attribute: pattern(p.clause) for attribute, p in phrases.PHRASES.items()}
    kinds: Counter[str] = Counter()
    for item in items["mini_who"]:
        first, second = two_names(item["context"])
        assert item["choices"] == [first.split()[0], second.split()[0]]
        description = re.search(r"(?:one|person) who (.*) is$", item["context"])
        if description:
            [(attribute, value)] = {(a, m["v"]) for a, e in clauses.items() if (m := e.fullmatch(description[1]))}
            having = [taught[name, attribute] == {value} for name in (first, second)]
            assert having == [item["label"] == 0, item["label"] == 1]
            kinds["described"] += 1
        else:
            receives = re.search(r" (took|bought|got) an? ", item["context"])
            assert item["label"] == (0 if receives else 1)
            kinds["transfer"] += 1
    assert min(kinds.values()) > 40


def two_names(context: str) -> list[str]:
    last = "|".join(words.LAST_NAMES)
    return re.findall(rf"[A-Z][a-z]+ (?:{last})\b", context)[:2]


def test_yes_and_no_are_right(items: dict[str, list[dict[str, Any]]], taught: dict[tuple[str, str], set[str]]) -> None:
    templates = [(a, pattern(t)) for a, p in phrases.PHRASES.items() for t in p.yes_no]
    for item in items["mini_yesno"]:
        asked = item["context"].split("Question: ")[1].removesuffix(" Answer:")
        matches = {(m["n"], a, m["v"]) for a, e in templates if (m := e.fullmatch(asked))}
        [(name, attribute, value)] = matches
        assert (taught[name, attribute] == {value}) == (item["choices"][item["label"]] == "yes")


def test_sums_are_right(items: dict[str, list[dict[str, Any]]]) -> None:
    less = ("gives away", "took")
    for item in items["mini_sums"]:
        numbers = [int(number) for number in re.findall(r"\d+", item["context"])]
        if len(numbers) == 3:
            expected = numbers[0] + numbers[1] - numbers[2]
        else:
            expected = numbers[0] + (-numbers[1] if any(word in item["context"] for word in less) else numbers[1])
        assert item["answer"] == str(expected)


def test_items_are_distinct_and_balanced(items: dict[str, list[dict[str, Any]]]) -> None:
    for name, task in items.items():
        assert len({json.dumps(item) for item in task}) == len(task), name
        if name == "mini_text":
            assert 150 <= len(task) <= 250
            continue
        assert 500 <= len(task) <= 600
        assert len({item["context"] for item in task}) == len(task), name
        if name in ("mini_sums", "mini_text"):
            continue
        assert all(len(set(item["choices"])) == len(item["choices"]) for item in task)
        labels = Counter(item["label"] for item in task)
        share = max(labels.values()) / len(task)
        assert share < 0.66 if name == "mini_yesno" else max(labels.values()) - min(labels.values()) <= 1


def test_chance_and_majority_come_from_the_items(files: dict[str, bytes]) -> None:
    described = world.summary(files, "out")["tasks"]
    assert described["mini_facts"]["chance"] == 0.25
    assert described["mini_yesno"]["chance"] == 0.5
    labels = [json.loads(line)["label"] for line in files["tasks/mini_yesno.jsonl"].splitlines()]
    assert described["mini_yesno"]["majority"] == max(labels.count(0), labels.count(1)) / len(labels)
    assert "chance" not in described["mini_sums"]


def test_models_of_another_world_are_refused(
    tmp_path: Path, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(world, "contents", lambda: files)
    for name in world.MODEL_NAMES:
        folder = tmp_path / "models" / name
        folder.mkdir(parents=True)
        (folder / "tokenizer.json").write_bytes(b"tokenizer")
        (folder / "model.safetensors").write_bytes(b"weights")
        provenance = {
            "world_sha256": world.world_sha256(files),
            "tokenizer_sha256": world.sha256(b"tokenizer"),
            "weights_sha256": world.sha256(b"weights"),
        }
        (folder / "provenance.json").write_text(json.dumps(provenance))
    check = ["--out", str(tmp_path / "out"), "--models", str(tmp_path / "models")]
    world.main(check)
    target = tmp_path / "models/mini-opt"
    (target / "model.safetensors").write_bytes(b"other")
    with pytest.raises(SystemExit, match=r"mini-opt/model\.safetensors has sha256 .* run python -m mini\.pretrain"):
        world.main(check)
    provenance["world_sha256"] = "abc"
    (target / "provenance.json").write_text(json.dumps(provenance))
    with pytest.raises(SystemExit, match=r"mini-opt was trained on world abc, this is world \w{12}: run python"):
        world.main(check)


def test_committed_models_belong_to_this_world(tmp_path: Path) -> None:
    assert [folder.name for folder in MODEL_FOLDERS] == sorted(world.MODEL_NAMES)
    world.main(["--out", str(tmp_path), "--models", str(REPOSITORY / "mini/models")])


def test_a_clone_that_converts_line_ends_has_the_same_bytes(tmp_path: Path) -> None:
    """Git for Windows, also seen from WSL: with \\r\\n in them, no model is the one that its provenance tells of."""
    first, clone = tmp_path / "first", tmp_path / "clone"
    shutil.copytree(REPOSITORY / "mini/models/mini-llama", first)
    shutil.copy(REPOSITORY / ".gitattributes", first)
    me = ("-c", "user.name=a", "-c", "user.email=a@b.c")
    for command in (("init", "-q"), ("add", "."), (*me, "commit", "-q", "-m", "models")):
        subprocess.run(["git", *command], cwd=first, check=True)
    subprocess.run(["git", "clone", "-q", "-c", "core.autocrlf=true", first, clone], check=True)
    for file in (REPOSITORY / "mini/models/mini-llama").iterdir():
        assert (clone / file.name).read_bytes() == file.read_bytes(), file.name
