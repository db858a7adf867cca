"""Biographies of people who do not exist, and questions about them: can a model use what it has memorized?

"Physics of Language Models: Part 3.1, Knowledge Storage and Extraction" (arXiv 2309.14316), its data bioS.
Left out: bioR, biographies that a language model rewrites (``wrap`` is such a writer); people who are written
about more than others, since two of these in one corpus write about the same people; and models that read in
both directions, which ``knowledge_extraction`` cannot ask. Each of N people has a unique full name (pools of
400, 400 and 1,000 first, middle and last names) and six attributes: birth date (200 years, 12 months, 28
days), birth city (of 200), university (300), major (100), company (263) and the company's city, which the
company decides. A biography has a sentence for each. The knowledge is augmented by

* ``paraphrases`` M (the paper's multiM): M biographies of each person, in other wordings;
* ``permute``: the sentences in random order, different in each biography;
* ``full_name``: the full name in every sentence instead of a pronoun.

Domain ``bio`` has the biographies of all people, ``qa`` the six questions with answers about a share of
them (half in the paper), and ``qa_test`` those about the others. Train on ``bio``, then on ``qa`` (or on
both at once, the paper's mixed training), never on ``qa_test``; ``knowledge_extraction`` measures how many
of its questions are answered exactly, ``memorization`` how much of the biographies is known by heart, and
``knowledge_probe`` where in a text the model has what it knows. ``recipes/knowledge_extraction.toml`` is the
paper's comparison, with several ways of fine-tuning after each kind of biographies. The paper: without
augmentation the biographies are memorized, yet almost nothing about the others can be extracted, whatever is
fine-tuned afterwards; with M = 5 and permuted sentences almost everything can.

Set ``tune = 0`` and ``test = 0`` in the corpus stage: a person whose biography is held out is unknown. All
names of people, places, schools and firms are made of syllables, so nothing that a model has read before
can help it, and each attribute has 10 wordings (about 50 in the paper), so small models and few tokens
suffice.

Not for training on the text as such: it knows ten sentences.

Errors: numbers out of range.
"""
from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from functools import cache, partial
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from trainwright.core.method import Curate

if TYPE_CHECKING:
    from daft import DataFrame

    from trainwright.core.context import Context
    from trainwright.corpus.sources import Row

FIRST, MIDDLE, LAST, CITIES, UNIVERSITIES, COMPANIES = 400, 400, 1000, 200, 300, 263
"""Sizes of the pools; 100 majors, and birth dates of 200 years, 12 months and 28 days."""
MONTHS = ("January", "February", "March", "April", "May", "June",
          "July", "August", "September", "October", "November", "December")
BEGINS = ("b", "d", "f", "g", "h", "k", "l", "m", "n", "p", "r", "s", "t", "v", "w", "br", "dr", "gr", "kl",
          "st", "tr")
ENDS = ("", "l", "n", "r", "s", "th")
FIELDS = ("Acoustics", "Algebra", "Anatomy", "Archaeology", "Botany", "Ceramics", "Chemistry", "Design",
          "Economics", "Forestry",
          "Geology", "Hydrology", "Linguistics", "Logic", "Mechanics", "Metallurgy", "Music", "Optics",
          "Statistics", "Zoology")
KINDS = ("Applied", "Comparative", "Computational", "Historical", "Theoretical")
ATTRIBUTES = ("birth_date", "birth_city", "university", "major", "company", "company_city")
QUESTIONS = {
    "birth_date": "What is the birth date of {name}?", "birth_city": "What is the birth city of {name}?",
    "university": "Which university did {name} attend?", "major": "What did {name} major in?",
    "company": "Which company did {name} work for?", "company_city": "In which city did {name} work?"}
SENTENCES: dict[str, tuple[str, ...]] = {
    "birth_date": (
        "{who} was born on {what}.", "{who} came into the world on {what}.",
        "{who} has had a birthday since {what}.",
        "{who} saw the light of day for the first time on {what}.", "{who} is one of those born on {what}.",
        "{who} entered life on {what}.", "{who} took a first breath on {what}.",
        "{who} counts the years from {what}.",
        "{who} began the journey of life on {what}.", "{who} has a birth certificate that is dated {what}."),
    "birth_city": (
        "{who} was delivered in a hospital of {what}.", "{who} is a native of {what}.",
        "{who} hails from {what}.",
        "{who} calls {what} the place of birth.", "{who} started life in {what}.",
        "{who} has {what} as birthplace.",
        "{who} comes originally from {what}.", "{who} was a baby in {what}.",
        "{who} first opened both eyes in {what}.",
        "{who} belongs by birth to {what}."),
    "university": (
        "{who} studied at {what}.", "{who} received a degree from {what}.",
        "{who} attended lectures at {what}.",
        "{who} graduated from {what}.", "{who} spent the student years at {what}.",
        "{who} was educated at {what}.",
        "{who} is an alumnus of {what}.", "{who} passed all examinations at {what}.",
        "{who} was enrolled at {what}.",
        "{who} owes a good education to {what}."),
    "major": (
        "{who} majored in {what}.", "{who} completed a degree in {what}.",
        "{who} chose {what} as field of study.",
        "{who} wrote a thesis in {what}.", "{who} concentrated on {what} as a student.",
        "{who} specialized in {what}.",
        "{who} took most courses in {what}.", "{who} devoted the years of study to {what}.",
        "{who} was trained in {what}.",
        "{who} learned all there was to learn in {what}."),
    "company": (
        "{who} worked for {what}.", "{who} was employed by {what}.", "{who} had a position at {what}.",
        "{who} earned a living at {what}.", "{who} was on the staff of {what}.",
        "{who} made a career at {what}.",
        "{who} was hired by {what}.", "{who} joined the team of {what}.",
        "{who} signed a contract with {what}.",
        "{who} was paid by {what}."),
    "company_city": (
        "{who} worked in {what}.", "{who} had an office in {what}.",
        "{who} went to work every day in {what}.",
        "{who} held a job in {what}.", "{who} gained professional experience in {what}.",
        "{who} had a desk in {what}.",
        "{who} was stationed for work in {what}.", "{who} spent the working hours in {what}.",
        "{who} found a post in {what}.",
        "{who} moved for a job to {what}.")}


NAMES = (("first", FIRST), ("middle", MIDDLE), ("last", LAST))


class PhysicsOfLms_3_1(Curate):
    """Adds the domains ``bio``, ``qa`` and ``qa_test``."""

    people: int = 1000
    """How many people; 100,000 in the paper."""
    paraphrases: int = 1
    """Biographies of each person, in different wordings."""
    permute: bool = False
    """Whether the sentences of each biography come in a random order."""
    full_name: bool = False
    """Whether every sentence has the full name instead of a pronoun."""
    asked: float = 0.5
    """Share of the people about whom ``qa`` asks; ``qa_test`` asks about the others."""
    example: ClassVar[dict[str, Any]] = {"people": 10, "paraphrases": 2, "permute": True}

    def __post_init__(self) -> None:
        if self.people < 2 or self.paraphrases < 1:
            raise ValueError(f"people must be 2 or more and paraphrases 1 or more, not {self.people} and "
                             f"{self.paraphrases}")
        if not 0 <= self.asked <= 1:
            raise ValueError(f"asked is a share from 0 to 1, not {self.asked}")

    def apply(self, documents: DataFrame, ctx: Context) -> DataFrame:
        from trainwright.corpus.sources import table, union
        return union(documents, table(self.name, [partial(_rows, self, ctx.seed)]))


def _rows(how: PhysicsOfLms_3_1, seed: int) -> Iterator[Row]:
    from trainwright.corpus.sources import document
    draw = random.Random(f"{how.name}/{seed}/asked")
    asked = set(draw.sample(range(how.people), round(how.asked * how.people)))
    for number, person in enumerate(people(how.people, seed)):
        draw = random.Random(f"{how.name}/{seed}/told/{number}")
        wordings = [_turns(how.paraphrases, draw) for _ in ATTRIBUTES]
        for turn in range(how.paraphrases):
            order = draw.sample(ATTRIBUTES, len(ATTRIBUTES)) if how.permute else ATTRIBUTES
            text = told(person, [w[turn] for w in wordings], order, how.full_name)
            yield document(id=f"bio/{number}/{turn}", text=text, domain="bio", source=how.name,
                           metadata={"name": person.name})
        domain = "qa" if number in asked else "qa_test"
        for attribute in ATTRIBUTES:
            question, answer = QUESTIONS[attribute].format(name=person.name), person.facts[attribute]
            known = {"name": person.name, "attribute": attribute, "question": f"{question}\nAnswer:",
                     "answer": answer}
            yield document(id=f"{domain}/{number}/{attribute}", text=f"{question}\nAnswer: {answer}.",
                           domain=domain, source=how.name, metadata=known)


def _turns(many: int, draw: random.Random) -> list[int]:
    """Which wording each biography has: all of them before one comes again."""
    known = len(SENTENCES[ATTRIBUTES[0]])
    return [place for _ in range(-(-many // known)) for place in draw.sample(range(known), known)][:many]


class Person(NamedTuple):
    """A full name, which pronoun stands for it, and the value of each attribute."""

    name: str
    pronoun: str
    facts: dict[str, str]


@cache
def pool(kind: str, many: int) -> tuple[str, ...]:
    """So many different words that can be pronounced, the same ones always."""
    draw = random.Random(f"biographies/{kind}")
    found: dict[str, None] = {}
    while len(found) < many:
        syllables = [draw.choice(BEGINS) + draw.choice("aeiou") for _ in range(draw.choice((2, 2, 3)))]
        found[("".join(syllables) + draw.choice(ENDS)).capitalize()] = None
    return tuple(found)


@cache
def places() -> dict[str, tuple[str, ...]]:
    """Cities, universities, majors and companies."""
    draw = random.Random("biographies/places")
    cities = tuple(name + draw.choice(("burg", "ford", "port", "ville")) for name in pool("city", CITIES))
    universities = tuple(draw.choice(("{} University", "University of {}", "{} College")).format(name)
                         for name in pool("university", UNIVERSITIES))
    trades = ("Foods", "Lines", "Mills", "Tools", "Works")
    companies = tuple(f"{name} {draw.choice(trades)}" for name in pool("company", COMPANIES))
    return {"city": cities, "university": universities,
            "major": tuple(f"{k} {f}" for f in FIELDS for k in KINDS),
            "company": companies, "seat": tuple(draw.choice(cities) for _ in companies)}


def people(many: int, seed: int) -> Iterator[Person]:
    """People with different full names; where more are asked for, the first ones stay the same."""
    found, seen = places(), set[str]()
    for number in range(many):
        draw = random.Random(f"biographies/{seed}/{number}")
        name = ""
        while not name or name in seen:
            name = " ".join(draw.choice(pool(kind, size)) for kind, size in NAMES)
        seen.add(name)
        company = draw.randrange(COMPANIES)
        born = f"{draw.choice(MONTHS)} {draw.randint(1, 28)}, {draw.randint(1900, 2099)}"
        yield Person(name, draw.choice(("He", "She")), {
            "birth_date": born, "birth_city": draw.choice(found["city"]),
            "university": draw.choice(found["university"]),
            "major": draw.choice(found["major"]), "company": found["company"][company],
            "company_city": found["seat"][company]})


def told(person: Person, wordings: Sequence[int], order: Sequence[str], full_name: bool) -> str:
    """A biography: a sentence for each attribute, the first of them with the full name.

    Args:
        wordings: which sentence, by attribute in the order of ``ATTRIBUTES``.
        full_name: whether the other sentences have it too, instead of a pronoun.
    """
    chosen = dict(zip(ATTRIBUTES, wordings, strict=True))
    names = [person.name, *([person.name if full_name else person.pronoun] * (len(order) - 1))]
    return " ".join(SENTENCES[a][chosen[a]].format(who=who, what=person.facts[a])
                    for who, a in zip(names, order, strict=True))
