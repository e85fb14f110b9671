"""Generated data of the tiny example models: plain text for the base, sums for the fine-tune.

Everything comes from a seeded `random.Random`, so the same seed gives the same data on every machine.
The plain text holds no sums: it counts, compares, spells and sorts, but never adds two numbers.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

__all__ = ["HELD_OUT_PROBLEMS", "held_out_problems", "problem_text", "text_documents", "training_problems"]

LARGEST_ADDEND = 199
HELD_OUT_PROBLEMS = 1000


def _words(text: str) -> list[str]:
    return text.split()


NAMES = _words("Anna Bruno Clara David Emma Felix Greta Hugo Iris Jonas Karla Lukas Mira Nils Olga Paul")
SHE = frozenset(_words("Anna Clara Emma Greta Iris Karla Mira Olga"))
THINGS = _words(
    "apple bell book bottle box bread brush button candle chair clock coin cup drum feather flag flower fork "
    "garden hammer hat jar kettle key kite ladder lamp leaf letter map mirror needle orange pan paper pear "
    "pen plate pot ribbon ring rope scarf shell shoe spoon stone table ticket towel train wheel window"
)
PLACES = _words(
    "attic bakery barn beach bridge castle cellar farm forest garden harbour hill house island kitchen lake "
    "library market mill museum park river school shop station street tower valley village yard"
)
COLOURS = _words("black blue brown green grey orange pink purple red silver white yellow")
QUALITIES = _words("broken clean cold dry heavy large light little new old plain round sharp small soft warm")
FINDING = _words("found saw bought lost painted carried washed forgot sold borrowed")
MOVING = _words("walked ran drove sailed cycled hurried returned came went travelled")
WEEKDAYS = _words("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")
MONTHS = _words("January February March April May June July August September October November December")
UNITS = _words(
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
    "seventeen eighteen nineteen"
)
TENS = _words("twenty thirty forty fifty sixty seventy eighty ninety")


def story(rng: random.Random) -> str:
    """Some sentences about one person and one thing; pronouns and repeats refer back to both."""
    name, friend = rng.sample(NAMES, 2)
    person = "she" if name in SHE else "he"
    thing, place, later = rng.choice(THINGS), *rng.sample(PLACES, 2)
    adjective = rng.choice(COLOURS + QUALITIES)
    article = "an" if adjective[0] in "aeiou" else "a"
    sentences = [f"On {rng.choice(WEEKDAYS)} {name} {rng.choice(FINDING)} {article} {adjective} {thing}."]
    middle = [
        f"Then {person} {rng.choice(MOVING)} to the {place} with the {thing}.",
        f"{friend} asked {name} about the {adjective} {thing}.",
        f"The {thing} was {rng.choice(QUALITIES)}, but {person} liked it.",
        f'"Is this {thing} yours?" said {friend}. "Yes, it is my {thing}," said {name}.',
        f"In {rng.choice(MONTHS)} {person} {rng.choice(MOVING)} from the {place} to the {later}.",
        f"{friend} and {name} looked for the {thing} in the {later}.",
    ]
    sentences += rng.sample(middle, rng.randint(2, 4))
    sentences.append(f"In the end {name} gave the {adjective} {thing} to {friend}.")
    return " ".join(sentences)


def counting(rng: random.Random) -> str:
    """Numbers at an even distance, upwards or downwards."""
    step, count = rng.choice([1, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 15, 20, 25, 50]), rng.randint(5, 14)
    first = rng.randint(0, LARGEST_ADDEND)
    numbers = [first + step * index for index in range(count)]
    if rng.random() < 0.3:
        numbers.reverse()
        return f"Count down by {step}s: {', '.join(map(str, numbers))}."
    return f"Count by {step}s: {', '.join(map(str, numbers))}."


def comparing(rng: random.Random) -> str:
    """A comparison of two numbers, an ordered list of numbers, or neighbours of a number."""
    left, right = rng.sample(range(2 * LARGEST_ADDEND), 2)
    kind = rng.randrange(3)
    if kind == 0:
        return f"{left} is {'more' if left > right else 'less'} than {right}."
    if kind == 1:
        numbers = rng.sample(range(2 * LARGEST_ADDEND), rng.randint(3, 6))
        listed, ordered = (", ".join(map(str, values)) for values in (numbers, sorted(numbers)))
        return f"Put in order: {listed}. Answer: {ordered}."
    return f"After {left} comes {left + 1}, then {left + 2}. Before {right + 2} come {right} and {right + 1}."


def number_in_words(number: int) -> str:
    """Words for 0 to 999."""
    if number < 20:
        return UNITS[number]
    if number < 100:
        tens, unit = TENS[number // 10 - 2], number % 10
        return f"{tens}-{UNITS[unit]}" if unit else tens
    hundreds, rest = f"{UNITS[number // 100]} hundred", number % 100
    return f"{hundreds} {number_in_words(rest)}" if rest else hundreds


def spelling(rng: random.Random) -> str:
    """A number in words, or a word letter by letter, forwards and backwards."""
    if rng.random() < 0.5:
        number = rng.randint(0, 2 * LARGEST_ADDEND)
        return f"The number {number} is written {number_in_words(number)}."
    word = rng.choice(THINGS + PLACES)
    return f"Spell {word}: {' '.join(word)}. Backwards: {' '.join(reversed(word))}."


def sorting(rng: random.Random) -> str:
    """Words, and the same words in alphabetical order."""
    words = rng.sample(THINGS, rng.randint(3, 6))
    return f"Sort {', '.join(words)}. Answer: {', '.join(sorted(words))}."


def calendar(rng: random.Random) -> str:
    """Days or months in their order."""
    cycle = rng.choice([WEEKDAYS, MONTHS])
    start = rng.randrange(len(cycle))
    return ", ".join(cycle[(start + index) % len(cycle)] for index in range(rng.randint(4, 8))) + "."


def program(rng: random.Random) -> str:
    """A small function whose names agree from line to line."""
    thing, other, place = (*rng.sample(THINGS, 2), rng.choice(PLACES))
    limit = rng.randint(0, LARGEST_ADDEND)
    return rng.choice(
        [
            f"def find_{thing}({place}):\n    for {thing} in {place}:\n        if {thing}.size > {limit}:\n"
            f"            return {thing}\n    return None\n",
            f"def count_{thing}s({place}, {other}):\n    total = {limit}\n    for {thing} in {place}:\n"
            f"        if {thing} != {other}:\n            total += 1\n    return total\n",
            f"class {thing.title()}:\n    def __init__(self, {other}, {place}):\n"
            f"        self.{other} = {other}\n        self.{place} = {place}\n",
            f"def move_{thing}({thing}, {place}):\n    if {thing} in {place}:\n"
            f"        {place}.remove({thing})\n        return True\n    return False\n",
        ]
    )


KINDS: list[tuple[Callable[[random.Random], str], int]] = [
    (story, 30),
    (counting, 30),
    (comparing, 15),
    (spelling, 8),
    (sorting, 6),
    (calendar, 3),
    (program, 8),
]


def text_documents(seed: int) -> Iterator[str]:
    """Endless plain text for the base, one document at a time; equal seeds give equal documents."""
    rng = random.Random(seed)
    makers, weights = [kind for kind, _ in KINDS], [weight for _, weight in KINDS]
    while True:
        yield rng.choices(makers, weights)[0](rng)


def problem_text(left: int, right: int) -> str:
    """The prompt of one sum; the model's answer is the decimal number that follows."""
    return f"{left}+{right}="


def _shuffled_pairs() -> list[tuple[int, int]]:
    """All unordered pairs of addends in one fixed random order."""
    pairs = [(left, right) for left in range(LARGEST_ADDEND + 1) for right in range(left, LARGEST_ADDEND + 1)]
    random.Random("held-out sums").shuffle(pairs)
    return pairs


def held_out_problems(limit: int | None = None) -> list[tuple[int, int]]:
    """The first `limit` held-out pairs of addends (all by default), in random order of the two addends.

    No pair is in `training_problems`, in either order.
    """
    rng = random.Random("order of addends")
    pairs = [
        (left, right) if rng.random() < 0.5 else (right, left) for left, right in _shuffled_pairs()[:HELD_OUT_PROBLEMS]
    ]
    return pairs[:limit]


def training_problems() -> list[tuple[int, int]]:
    """All pairs of addends, in both orders, that are not held out."""
    pairs = _shuffled_pairs()[HELD_OUT_PROBLEMS:]
    return sorted({pair for left, right in pairs for pair in ((left, right), (right, left))})
