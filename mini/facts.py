"""The facts of the small world, and which wordings of each fact are kept out of all training text.

Everything follows from one seed by hashing strings, so a fact does not change when another list grows, and the bytes
are the same on every Python version.
"""

import hashlib
from dataclasses import dataclass, field
from random import Random

from mini import words

VERSION = "2"
SEED = 2
PEOPLE = 800  # of 32 * 32 possible full names
ROUTINE_STEPS = 4  # activities a person does in order; 3 transitions can be asked

ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "town": words.TOWNS,
    "job": words.JOBS,
    "pet": words.PETS,
    "instrument": words.INSTRUMENTS,
    "food": words.FOODS,
    "color": words.COLORS,
    "gift": words.THINGS,
}


def hashed(count: int, *key: object) -> int:
    """A number in 0..count-1 that depends on the seed and `key` only."""
    digest = hashlib.blake2b("/".join(map(str, (SEED, *key))).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") % count


@dataclass(frozen=True)
class Person:
    index: int
    first: str
    last: str
    pronoun: str  # "she" or "he"
    values: dict[str, str]  # attribute -> value
    giver: int  # index of the person who gave `values["gift"]`
    routine: tuple[str, ...]  # activities in their order

    @property
    def name(self) -> str:
        return f"{self.first} {self.last}"


@dataclass(frozen=True)
class World:
    people: tuple[Person, ...]
    tools: dict[tuple[str, str], str]  # (verb, thing) -> tool
    by_first: dict[str, list[Person]] = field(default_factory=dict)
    by_last: dict[str, list[Person]] = field(default_factory=dict)


def build() -> World:
    """All facts of the world."""
    rng = Random(f"people/{SEED}")
    names = [(first, last) for first in words.WOMEN + words.MEN for last in words.LAST_NAMES]
    rng.shuffle(names)
    people = []
    for index, (first, last) in enumerate(names[:PEOPLE]):
        values = {name: options[hashed(len(options), name, first, last)] for name, options in ATTRIBUTES.items()}
        giver = (index + 1 + hashed(PEOPLE - 1, "giver", first, last)) % PEOPLE  # never the person itself
        routine = tuple(Random(f"routine/{SEED}/{first} {last}").sample(words.ACTIVITIES, ROUTINE_STEPS))
        people.append(Person(index, first, last, "she" if first in words.WOMEN else "he", values, giver, routine))
    tools = {
        (verb, thing): words.TOOLS[hashed(len(words.TOOLS), "tool", verb, thing)]
        for verb in words.VERBS
        for thing in words.THINGS
    }
    world = World(tuple(people), tools)
    for person in people:
        world.by_first.setdefault(person.first, []).append(person)
        world.by_last.setdefault(person.last, []).append(person)
    return world


def pair_is_held_out(a: Person, b: Person) -> bool:
    """One pair of people in eight never stands together in a training sentence that compares them."""
    low, high = sorted((a.index, b.index))
    return (high - low) % 8 == 0


def sum_is_held_out(*numbers: int) -> bool:
    """One set of operands in eleven is never added or subtracted in training text."""
    return sum(number * weight for number, weight in zip(numbers, (3, 7, 5), strict=False)) % 11 == 0
