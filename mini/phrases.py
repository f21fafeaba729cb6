"""How each kind of fact is said: sentence patterns, in plain English.

In patterns {n} is a person's full name, {v} the value, {g} the giver, {p} the pronoun, {a}/{b} two activities in order,
{x}/{y} the verb and thing of a goal. Of questions, routines and goals, one wording per fact is held out of all training
text (`held_out`), so a fact that is asked was always taught in other words.
"""

from dataclasses import dataclass
from itertools import permutations

from mini.facts import Person, hashed


@dataclass(frozen=True)
class Phrases:
    """Wordings of one attribute. The value ends the question's answer, so it follows the name in most of them."""

    statements: tuple[str, ...]
    questions: tuple[str, ...]
    yes_no: tuple[str, ...]
    clause: str  # what a sentence says of its subject; completes "the one who ..." too
    denial: str  # the same, denied


PHRASES: dict[str, Phrases] = {
    "town": Phrases(
        (
            "{n} lives in {v}.",
            "{n} has a house in {v}.",
            "The home of {n} is in {v}.",
            "You can find {n} in the town of {v}.",
            "The town of {v} is the home of {n}.",
        ),
        ("Where does {n} live?", "In which town is the home of {n}?", "What town does {n} come from?"),
        ("Does {n} live in {v}?", "Is the home of {n} in {v}?", "Does {n} come from {v}?"),
        "lives in {v}",
        "does not live in {v}",
    ),
    "job": Phrases(
        (
            "{n} works as a {v}.",
            "{n} is a {v} by trade.",
            "The work of {n} is that of a {v}.",
            "People know {n} as a good {v}.",
            "A {v} of this country is {n}.",
        ),
        ("What is the job of {n}?", "What work does {n} do?", "What is {n} by trade?"),
        ("Does {n} work as a {v}?", "Is {n} a {v}?", "Is the work of {n} that of a {v}?"),
        "works as a {v}",
        "does not work as a {v}",
    ),
    "pet": Phrases(
        (
            "{n} keeps a {v}.",
            "{n} has a {v} at home.",
            "The pet of {n} is a {v}.",
            "In the house of {n} lives a {v}.",
            "A {v} belongs to {n}.",
        ),
        ("What pet does {n} have?", "Which animal does {n} keep?", "What lives in the house of {n}?"),
        ("Does {n} keep a {v}?", "Is the pet of {n} a {v}?", "Does {n} have a {v} at home?"),
        "keeps a {v}",
        "does not keep a {v}",
    ),
    "instrument": Phrases(
        (
            "{n} plays the {v}.",
            "{n} makes music on the {v}.",
            "In the evening {n} plays on a {v}.",
            "You can hear {n} play the {v}.",
            "The {v} is played by {n}.",
        ),
        ("What does {n} play?", "On what does {n} make music?", "What can you hear {n} play?"),
        ("Does {n} play the {v}?", "Can you hear {n} play the {v}?", "Does {n} make music on the {v}?"),
        "plays the {v}",
        "does not play the {v}",
    ),
    "food": Phrases(
        (
            "{n} likes {v} best.",
            "{n} often asks for {v}.",
            "The best food for {n} is {v}.",
            "For dinner {n} eats {v}.",
            "Some {v} is what {n} likes.",
        ),
        ("What does {n} like best?", "What food does {n} ask for?", "What does {n} eat for dinner?"),
        ("Does {n} like {v} best?", "Does {n} often ask for {v}?", "Does {n} eat {v} for dinner?"),
        "likes {v} best",
        "does not like {v} best",
    ),
    "color": Phrases(
        (
            "{n} wears a {v} coat.",
            "{n} has a coat that is {v}.",
            "The coat of {n} is {v}.",
            "You know {n} by a coat of {v}.",
            "A {v} coat belongs to {n}.",
        ),
        ("What color is the coat of {n}?", "Which color does {n} wear?", "What color do you know {n} by?"),
        ("Does {n} wear a {v} coat?", "Is the coat of {n} {v}?", "Does {n} have a coat that is {v}?"),
        "wears a {v} coat",
        "does not wear a {v} coat",
    ),
    "gift": Phrases(
        (
            "{n} got a {v} from {g}.",
            "{n} has a present from {g}, a {v}.",
            "{g} gave {n} a {v}.",
            "The present that {n} got from {g} is a {v}.",
            "A {v} was given to {n} by {g}.",
        ),
        ("What did {n} get from {g}?", "Which present did {g} give to {n}?", "What was given to {n} by {g}?"),
        ("Did {n} get a {v} from {g}?", "Did {g} give {n} a {v}?", "Is a {v} the present that {n} got from {g}?"),
        "got a {v} as a present",
        "did not get a {v} as a present",
    ),
}

ROUTINES = (
    "After {n} {a}, {p} {b}.",
    "First {n} {a} and then {p} {b}.",
    "{n} {a} and next {p} {b}.",
    "Once {n} {a}, {p} {b}.",
    "Every day {n} {a}, and soon {p} {b}.",
)

GOALS = (
    "To {x} a {y}, use a {v}.",
    "If you want to {x} a {y}, take a {v}.",
    "You can {x} a {y} with a {v}.",
    "The right tool to {x} a {y} is a {v}.",
    "People here {x} a {y} with a {v}.",
)

# Two clauses {c}, {d} about one person. For one pair of clauses in six, all of these sentences are held out
# (`join_is_held_out`): both facts are known, and so is the pattern, but not together.
JOINS = ("{n} {c} and {d}.", "{n}, who {c}, {d}.", "Everybody knows that {n} {c} and {d}.")

# Two people, with one clause each where {c}, {d} stand; {e} describes one of them, whose first name follows.
KNOWN_COMPARISONS = (
    "Of {m} and {n}, the one who {e} is",
    "{m} and {n} are here, and the one who {e} is",
    "Between {m} and {n}, the person who {e} is",
)
STATED_COMPARISONS = (
    "{m} {c} and {n} {d}, so the one who {e} is",
    "As {m} {c} while {n} {d}, the person who {e} is",
)
# A thing {v} changes hands: the pattern, and which of {m} (0), {n} (1) has it afterwards.
TRANSFERS = (
    ("When {m} gave a {v} to {n}, the {v} went to", 1),
    ("When {m} sold a {v} to {n}, the {v} went to", 1),
    ("After {m} sent {n} a {v}, it was in the hands of", 1),
    ("When {m} took a {v} from {n}, the {v} went to", 0),
    ("When {m} bought a {v} from {n}, the {v} went to", 0),
    ("After {m} got a {v} from {n}, it was in the hands of", 0),
)

# Small sums: {f}, {h} first names, {i}, {j}, {k} numbers, {c} what is counted; the signs say how to reckon.
SUMS = (
    ("If {f} has {i} {c} and buys {j} more, how many are there?", (1, 1)),
    ("When {f} finds {i} {c} and {h} brings {j}, how many do they have?", (1, 1)),
    ("If {f} has {i} {c} and gives away {j}, how many are left?", (1, -1)),
    ("When {f} had {i} {c} and {h} took {j}, how many were left?", (1, -1)),
    ("If {f} has {i} {c}, buys {j} more and sells {k}, how many are left?", (1, 1, -1)),
)


def held_out(person: Person, kind: str, count: int) -> int:
    """Which of `count` wordings of this person's fact never stands in training text."""
    return hashed(count, "held out", kind, person.name)


def held_out_goal(verb: str, thing: str) -> int:
    """Which wording of this goal never stands in training text."""
    return hashed(len(GOALS), "held out", verb, thing)


def join_is_held_out(person: Person, first: str, second: str) -> bool:
    """Whether these two attributes, in this order, never stand together in one sentence of training text.

    True for 7 of the 42 pairs of each person.
    """
    return (ORDERED_PAIRS.index((first, second)) + hashed(6, "join", person.name)) % 6 == 0


ORDERED_PAIRS = tuple(permutations(PHRASES, 2))
