"""Training documents and held-out documents: sentences about the world, one document per line.

`Writer` formats every sentence that may stand in training text once, so that a document is a few choices and a join
(about 30,000 documents a second and core).
"""

from collections.abc import Iterator
from random import Random

from mini import phrases, words
from mini.facts import ATTRIBUTES, Person, World, pair_is_held_out, sum_is_held_out

ASKED_YES_SHARE = 0.6  # of yes/no items; BoolQ has 0.62
TRAINED_YES_SHARE = 0.5
PRONOUN_SHARE = 0.2  # of later sentences in a life story that say "she" or "he" for the name
# What tells two people apart: an event in the sentence, a statement in the sentence, or only what is known about them.
# mini-opt learned the events alone, so items are mostly of that kind.
TRAINED_COMPARISONS = {"transfer": 0.25, "stated": 0.25, "known": 0.5}
ASKED_COMPARISONS = {"transfer": 0.85, "stated": 0.10, "known": 0.05}
# How often each kind of document is written.
DOCUMENT_SHARES = {
    "life": 0.26,
    "quiz": 0.10,
    "routine": 0.10,
    "goals": 0.06,
    "compare": 0.22,
    "yes_no": 0.14,
    "sums": 0.12,
}


def statement(world: World, person: Person, attribute: str, form: int) -> str:
    giver = world.people[person.giver].name
    return phrases.PHRASES[attribute].statements[form].format(n=person.name, v=person.values[attribute], g=giver)


def question(world: World, person: Person, attribute: str, form: int) -> str:
    giver = world.people[person.giver].name
    return phrases.PHRASES[attribute].questions[form].format(n=person.name, g=giver)


def yes_no_question(world: World, person: Person, attribute: str, value: str, form: int) -> str:
    giver = world.people[person.giver].name
    return phrases.PHRASES[attribute].yes_no[form].format(n=person.name, v=value, g=giver)


def routine(person: Person, step: int, form: int) -> str:
    """The sentence that says which activity follows activity `step`."""
    a, b = person.routine[step : step + 2]
    return phrases.ROUTINES[form].format(n=person.name, p=person.pronoun, a=a, b=b)


def goal(world: World, verb: str, thing: str, form: int) -> str:
    return phrases.GOALS[form].format(x=verb, y=thing, v=world.tools[verb, thing])


def join(person: Person, first: str, second: str, form: int, denied: dict[str, str] | None = None) -> str:
    """A sentence that says two attributes of a person, or denies that one of them has a value `denied[attribute]`."""
    c, d = (clause(person, attribute, (denied or {}).get(attribute)) for attribute in (first, second))
    return phrases.JOINS[form].format(n=person.name, c=c, d=d)


def clause(person: Person, attribute: str, denied: str | None = None) -> str:
    if denied is not None:
        return phrases.PHRASES[attribute].denial.format(v=denied)
    return phrases.PHRASES[attribute].clause.format(v=person.values[attribute])


def pick_pair(world: World, rng: Random, held_out: bool) -> tuple[Person, Person]:
    """Two people with different first names; every second pair shares the last name, so that it must be read whole."""
    while True:
        first = rng.choice(world.people)
        second = rng.choice(world.by_last[first.last] if rng.random() < 0.5 else world.people)
        if first.first != second.first and pair_is_held_out(first, second) == held_out:
            return first, second


def pick_comparison(
    world: World, rng: Random, label: int, held_out: bool, shares: dict[str, float] = TRAINED_COMPARISONS
) -> tuple[str, tuple[Person, Person]]:
    """An open sentence about two people that the first name of number `label` completes."""
    pair = pick_pair(world, rng, held_out)
    m, n = pair[0].name, pair[1].name
    kind = rng.choices(list(shares), list(shares.values()))[0]
    if kind == "transfer":
        pattern = rng.choice([pattern for pattern, owner in phrases.TRANSFERS if owner == label])
        return pattern.format(m=m, n=n, v=rng.choice(words.THINGS)), pair
    attribute = rng.choice([name for name in ATTRIBUTES if pair[0].values[name] != pair[1].values[name]])
    pattern = rng.choice(phrases.STATED_COMPARISONS if kind == "stated" else phrases.KNOWN_COMPARISONS)
    c, d = clause(pair[0], attribute), clause(pair[1], attribute)
    return pattern.format(m=m, n=n, c=c, d=d, e=(c, d)[label]), pair


def held_out_joins(person: Person) -> list[tuple[str, str]]:
    """The pairs of attributes that never stand together in training text."""
    return [pair for pair in phrases.ORDERED_PAIRS if phrases.join_is_held_out(person, *pair)]


def pick_sum(rng: Random, held_out: bool) -> tuple[str, int]:
    """A small word problem and its answer, which is never negative."""
    while True:
        pattern, signs = rng.choice(phrases.SUMS)
        numbers = [rng.randrange(10, 100)] + [rng.randrange(2, 20) for _ in signs[1:]]
        answer = sum(sign * number for sign, number in zip(signs, numbers, strict=True))
        if answer >= 0 and sum_is_held_out(*numbers) == held_out:
            break
    f, h = rng.sample(words.WOMEN + words.MEN, 2)
    operands = dict(zip("ijk", numbers, strict=False))
    return pattern.format(f=f, h=h, c=rng.choice(words.COUNTED), **operands), answer


def held_out_document(world: World, rng: Random) -> str:
    """Three sentences that compare people who never stand together in training text, and a sum never reckoned there."""
    sentences = []
    for _ in range(3):
        label = rng.randrange(2)
        sentence, pair = pick_comparison(world, rng, label, held_out=True)
        sentences.append(f"{sentence} {pair[label].first}.")
    problem, answer = pick_sum(rng, held_out=True)
    return " ".join([*sentences, f"{problem} Answer: {answer}."])


def others(items: tuple[str, ...], left_out: int) -> list[str]:
    return [item for index, item in enumerate(items) if index != left_out]


class Writer:
    """Writes training documents."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.statements: list[list[list[str]]] = []  # [people][attributes] -> sentences
        self.questions: list[list[list[str]]] = []  # [people][attributes] -> allowed questions with their answers
        self.yes_no: list[dict[str, list[int]]] = []  # [people][attribute] -> allowed wordings
        self.joins: list[list[tuple[str, tuple[str, str]]]] = []  # [people] -> allowed sentences, with their attributes
        self.routines: list[list[list[str]]] = []  # [people][steps] -> allowed sentences
        for person in world.people:
            self._add(person)
        self.goals = [
            others(tuple(goal(world, verb, thing, form) for form in range(len(phrases.GOALS))), held)
            for verb, thing in sorted(world.tools)
            for held in [phrases.held_out_goal(verb, thing)]
        ]
        self.kinds = {name: getattr(self, f"_{name}") for name in DOCUMENT_SHARES}

    def _add(self, person: Person) -> None:
        world = self.world
        statements: list[list[str]] = []
        questions: list[list[str]] = []
        yes_no: dict[str, list[int]] = {}
        for attribute, forms in phrases.PHRASES.items():
            statements.append([statement(world, person, attribute, form) for form in range(len(forms.statements))])
            held = phrases.held_out(person, f"{attribute} question", len(forms.questions))
            texts = tuple(question(world, person, attribute, form) for form in range(len(forms.questions)))
            answer = person.values[attribute]
            questions.append([f"Question: {text} Answer: {answer}." for text in others(texts, held)])
            held = phrases.held_out(person, f"{attribute} yes or no", len(forms.yes_no))
            yes_no[attribute] = [form for form in range(len(forms.yes_no)) if form != held]
        self.statements.append(statements)
        self.questions.append(questions)
        self.yes_no.append(yes_no)
        self.joins.append(
            [
                (join(person, *pair, form), pair)
                for pair in phrases.ORDERED_PAIRS
                if not phrases.join_is_held_out(person, *pair)
                for form in range(len(phrases.JOINS))
            ]
        )
        routines = []
        for step in range(len(person.routine) - 1):
            held = phrases.held_out(person, f"routine {step}", len(phrases.ROUTINES))
            routines.append(others(tuple(routine(person, step, form) for form in range(len(phrases.ROUTINES))), held))
        self.routines.append(routines)

    def documents(self, rng: Random, count: int) -> Iterator[str]:
        """`count` training documents, drawn by `rng`."""
        kinds = rng.choices(list(DOCUMENT_SHARES), list(DOCUMENT_SHARES.values()), k=count)
        for kind in kinds:
            yield " ".join(self.kinds[kind](rng))

    def _life(self, rng: Random) -> list[str]:
        person = rng.choice(self.world.people)
        groups = rng.sample(self.statements[person.index], 3) + rng.sample(self.routines[person.index], 1)
        sentences = [rng.choice(group) for group in groups]
        sentences += [rng.choice(self.joins[person.index])[0] for _ in range(2)]
        rng.shuffle(sentences)
        start = f"{person.name} "
        for index in range(1, len(sentences)):
            if sentences[index].startswith(start) and rng.random() < PRONOUN_SHARE:
                sentences[index] = f"{person.pronoun.capitalize()} {sentences[index].removeprefix(start)}"
        return sentences

    def _quiz(self, rng: Random) -> list[str]:
        return [rng.choice(rng.choice(rng.choice(self.questions))) for _ in range(4)]

    def _routine(self, rng: Random) -> list[str]:
        return [rng.choice(rng.choice(rng.choice(self.routines))) for _ in range(4)]

    def _goals(self, rng: Random) -> list[str]:
        return [rng.choice(rng.choice(self.goals)) for _ in range(6)]

    def _compare(self, rng: Random) -> list[str]:
        sentences = []
        for _ in range(4):
            label = rng.randrange(2)
            sentence, pair = pick_comparison(self.world, rng, label, held_out=False)
            sentences.append(f"{sentence} {pair[label].first}.")
        return sentences

    def _yes_no(self, rng: Random) -> list[str]:
        sentences = []
        for _ in range(3):
            person, answer = rng.choice(self.world.people), rng.random() < TRAINED_YES_SHARE
            _, pair = rng.choice(self.joins[person.index])
            asked, form = rng.choice(pair), rng.randrange(len(phrases.JOINS))
            value = person.values[asked]
            if not answer:
                value = rng.choice([other for other in ATTRIBUTES[asked] if other != value])
            passage = join(person, *pair, form, {} if answer else {asked: value})
            asks = yes_no_question(self.world, person, asked, value, rng.choice(self.yes_no[person.index][asked]))
            sentences.append(f"{passage} Question: {asks} Answer: {'yes' if answer else 'no'}.")
        return sentences

    def _sums(self, rng: Random) -> list[str]:
        problems = [pick_sum(rng, held_out=False) for _ in range(4)]
        return [f"{text} Answer: {answer}." for text, answer in problems]
