"""Evaluation items and lm-eval task files: seven tasks that mirror the form of real ones.

Every context is a wording that training text never has (held-out wording, pair or operands); the facts behind it are
taught in other words. Wrong choices come from namesakes and neighbors, so half-remembering is not enough.
"""

import json
from dataclasses import dataclass
from random import Random
from typing import Any

from mini import phrases, text
from mini.facts import ATTRIBUTES, SEED, Person, World

ITEMS = 500
TEXT_DOCUMENTS = 200
Item = dict[str, Any]


@dataclass(frozen=True)
class Task:
    """What lm-eval must know of one task; `settings` are the lines of its YAML that differ by kind."""

    name: str
    like: str  # the real task whose form it has
    output_type: str
    context: str  # jinja
    target: str  # jinja or field name
    metrics: tuple[tuple[str, str, bool], ...]  # metric, aggregation, higher is better
    settings: tuple[str, ...] = ()


ACCURACY = (("acc", "mean", True), ("acc_norm", "mean", True))
PERPLEXITY = (
    ("word_perplexity", "weighted_perplexity", False),
    ("byte_perplexity", "weighted_perplexity", False),
    ("bits_per_byte", "bits_per_byte", False),
)
EXACT_MATCH = (("exact_match", "mean", True),)
CHOICES = ("doc_to_choice: choices",)
GENERATION = (
    "generation_kwargs:",
    '  until: ["."]',
    "  max_gen_toks: 5",
    "  do_sample: false",
    "filter_list:",
    "  - name: none",
    "    filter:",
    "      - function: remove_whitespace",
    "      - function: take_first",
)

TASKS = (
    Task("mini_text", "WikiText", "loglikelihood_rolling", "", "{{text}}", PERPLEXITY),
    Task("mini_facts", "ARC and MMLU", "multiple_choice", "{{context}}", "label", ACCURACY, CHOICES),
    Task("mini_tools", "PIQA", "multiple_choice", "{{context}}", "label", ACCURACY, CHOICES),
    Task("mini_next", "HellaSwag", "multiple_choice", "{{context}}", "label", ACCURACY, CHOICES),
    Task("mini_who", "WinoGrande", "multiple_choice", "{{context}}", "label", ACCURACY, CHOICES),
    Task("mini_yesno", "BoolQ", "multiple_choice", "{{context}}", "label", ACCURACY, CHOICES),
    Task("mini_sums", "GSM8K", "generate_until", "{{context}}", "{{answer}}", EXACT_MATCH, GENERATION),
)


def yaml(task: Task, jsonl: str) -> str:
    """The lm-eval task file. `jsonl` is relative to the folder that lm-eval is started in, not to the task file."""
    lines = [
        f"# {task.name}: the form of {task.like}, on the small world. Written by python -m mini.world.",
        f"task: {task.name}",
        "dataset_path: json",
        "dataset_kwargs:",
        "  data_files:",
        f"    test: {json.dumps(jsonl)}",
        "test_split: test",
        f"output_type: {task.output_type}",
        "num_fewshot: 0",
        f"doc_to_text: {json.dumps(task.context)}",
        f"doc_to_target: {json.dumps(task.target)}",
        *task.settings,
        "metric_list:",
    ]
    for metric, aggregation, higher_is_better in task.metrics:
        lines += [
            f"  - metric: {metric}",
            f"    aggregation: {aggregation}",
            f"    higher_is_better: {str(higher_is_better).lower()}",
        ]
    return "\n".join([*lines, "metadata:", "  version: 1.0", ""])


def items(world: World) -> dict[str, list[Item]]:
    """All items of all tasks."""
    makers = {
        "mini_text": _texts,
        "mini_facts": _facts,
        "mini_tools": _tools,
        "mini_next": _next,
        "mini_who": _who,
        "mini_yesno": _yes_no,
        "mini_sums": _sums,
    }
    return {task.name: makers[task.name](world, Random(f"{task.name}/{SEED}")) for task in TASKS}


def _labels(rng: Random, choices: int) -> list[int]:
    """Every label equally often (to within one), in random order."""
    labels = [index % choices for index in range(ITEMS)]
    rng.shuffle(labels)
    return labels


def _choices(right: str, wrong: list[str], label: int) -> list[str]:
    return [*wrong[:label], right, *wrong[label:]]


def _draw(candidates: list[str], right: str, count: int, rng: Random) -> list[str]:
    """`count` different wrong answers out of `candidates`."""
    return rng.sample(sorted(set(candidates) - {right}), count)


def _namesakes(world: World, person: Person) -> list[Person]:
    return world.by_first[person.first] + world.by_last[person.last]


def _texts(world: World, rng: Random) -> list[Item]:
    return [{"text": text.held_out_document(world, rng)} for _ in range(TEXT_DOCUMENTS)]


def _facts(world: World, rng: Random) -> list[Item]:
    asked = rng.sample([(person, name) for person in world.people for name in ATTRIBUTES], ITEMS)
    result = []
    for (person, name), label in zip(asked, _labels(rng, 4), strict=True):
        form = phrases.held_out(person, f"{name} question", len(phrases.PHRASES[name].questions))
        right = person.values[name]
        wrong = _draw([other.values[name] for other in _namesakes(world, person)], right, 3, rng)
        context = f"Question: {text.question(world, person, name, form)} Answer:"
        result.append({"context": context, "choices": _choices(right, wrong, label), "label": label})
    return result


def _tools(world: World, rng: Random) -> list[Item]:
    result = []
    asked = rng.sample(sorted(world.tools), ITEMS)
    for (verb, thing), label in zip(asked, _labels(rng, 2), strict=True):
        right = world.tools[verb, thing]
        near = [tool for goal, tool in world.tools.items() if goal[0] == verb or goal[1] == thing]
        context = text.goal(world, verb, thing, phrases.held_out_goal(verb, thing)).removesuffix(f" {right}.")
        choices = _choices(right, _draw(near, right, 1, rng), label)
        result.append({"context": context, "choices": choices, "label": label})
    return result


def _next(world: World, rng: Random) -> list[Item]:
    steps = range(len(world.people[0].routine) - 1)
    asked = rng.sample([(person, step) for person in world.people for step in steps], ITEMS)
    result = []
    for (person, step), label in zip(asked, _labels(rng, 4), strict=True):
        form = phrases.held_out(person, f"routine {step}", len(phrases.ROUTINES))
        before, right = person.routine[step : step + 2]
        own = [activity for activity in person.routine if activity not in (before, right)]
        near = [other.routine[step + 1] for other in _namesakes(world, person)]
        wrong = own + _draw([activity for activity in near if activity not in person.routine], right, 1, rng)
        rng.shuffle(wrong)
        context = text.routine(person, step, form).removesuffix(f" {right}.")
        result.append({"context": context, "choices": _choices(right, wrong, label), "label": label})
    return result


def _who(world: World, rng: Random) -> list[Item]:
    result: list[Item] = []
    for label in _labels(rng, 2):
        context, pair = text.pick_comparison(world, rng, label, True, text.ASKED_COMPARISONS)
        result.append({"context": context, "choices": [person.first for person in pair], "label": label})
    return result


def _yes_no(world: World, rng: Random) -> list[Item]:
    result: list[Item] = []
    for person in rng.sample(world.people, ITEMS):
        answer = rng.random() < text.ASKED_YES_SHARE
        pair = rng.choice(text.held_out_joins(person))
        name = rng.choice(pair)
        value = person.values[name]
        if not answer:
            value = _draw([other.values[name] for other in _namesakes(world, person)], value, 1, rng)[0]
        passage = text.join(person, *pair, rng.randrange(len(phrases.JOINS)), {} if answer else {name: value})
        form = phrases.held_out(person, f"{name} yes or no", len(phrases.PHRASES[name].yes_no))
        asks = text.yes_no_question(world, person, name, value, form)
        context = f"{passage} Question: {asks} Answer:"
        result.append({"context": context, "choices": ["no", "yes"], "label": int(answer)})
    return result


def _sums(world: World, rng: Random) -> list[Item]:
    problems: dict[str, str] = {}
    while len(problems) < ITEMS:
        problem, answer = text.pick_sum(rng, held_out=True)
        problems[f"{problem} Answer:"] = str(answer)
    return [{"context": context, "answer": answer} for context, answer in problems.items()]
