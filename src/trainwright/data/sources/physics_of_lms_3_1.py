"""Biographies of people who do not exist, and questions about them: can a model use what it has memorized?

"Physics of Language Models: Part 3.1, Knowledge Storage and Extraction" (arXiv 2309.14316), its data bioS. Each of N people has a
unique full name (pools of 400, 400 and 1,000 first, middle and last names) and six attributes: birth date (200 years, 12 months,
28 days), birth city (of 200), university (300), major (100), company (263) and the company's city, which the company decides.
A biography has a sentence for each. The knowledge is augmented by

* ``paraphrases`` M (the paper's multiM): M biographies of each person, in other wordings;
* ``permute``: the sentences in random order, in each biography another;
* ``full_name``: the full name in every sentence instead of a pronoun.

Domain ``bio`` has the biographies of all people, ``qa`` the six questions with answers about a share of them (half in the
paper), and ``qa_test`` those about the others. Train on ``bio``, then on ``qa`` (or on both at once, the paper's mixed
training), never on ``qa_test``; ``knowledge_extraction`` measures how many of its questions are answered exactly. The paper:
without augmentation the biographies are memorized, yet nearly nothing about the others can be extracted; with M = 5 and
permuted sentences nearly all can.

Give the corpus stage ``tune = 0`` and ``test = 0``: with a biography that is kept back a person is unknown. Here names are
made of syllables and each attribute has 10 wordings (about 50 in the paper), so that small models and few tokens do.

Errors: numbers that are not possible.
"""
from __future__ import annotations

import random
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from trainwright.core.bench import Bench
from trainwright.core.method import Curate

if TYPE_CHECKING:
    from daft import DataFrame

    from trainwright.core.context import Context
    from trainwright.corpus.sources import Row


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
    bench: ClassVar[Bench | None] = Bench(
        suite="knowledge", at="told", versus="one biography each",
        add=({"use": "physics_of_lms_3_1", "people": 40, "paraphrases": 5, "permute": True},),
        claim="without paraphrase or permutation knowledge is memorised but hardly extractable, whatever is fine-tuned "
        "afterwards; with them it is", scale="the paper has 100,000 people and a GPT-2 of 124 M parameters")
    example: ClassVar[dict[str, Any]] = {"people": 10, "paraphrases": 2, "permute": True}

    def __post_init__(self) -> None:
        if self.people < 2 or self.paraphrases < 1:
            raise ValueError(f"people must be 2 or more and paraphrases 1 or more, not {self.people} and {self.paraphrases}")
        if not 0 <= self.asked <= 1:
            raise ValueError(f"asked is a share from 0 to 1, not {self.asked}")

    def apply(self, documents: DataFrame, ctx: Context) -> DataFrame:
        from trainwright.corpus.sources import table, union
        return union(documents, table(self.name, [partial(_rows, self, ctx.seed)]))


def _rows(how: PhysicsOfLms_3_1, seed: int) -> Iterator[Row]:
    from trainwright.corpus.sources import document
    from trainwright.data.sources._biographies import ATTRIBUTES, QUESTIONS, people, told
    asked = set(random.Random(f"{how.name}/{seed}/asked").sample(range(how.people), round(how.asked * how.people)))
    for number, person in enumerate(people(how.people, seed)):
        draw = random.Random(f"{how.name}/{seed}/told/{number}")
        wordings = [_turns(how.paraphrases, draw) for _ in ATTRIBUTES]
        for turn in range(how.paraphrases):
            order = draw.sample(ATTRIBUTES, len(ATTRIBUTES)) if how.permute else ATTRIBUTES
            text = told(person, [w[turn] for w in wordings], order, how.full_name)
            yield document(id=f"bio/{number}/{turn}", text=text, domain="bio", source=how.name, metadata={"name": person.name})
        domain = "qa" if number in asked else "qa_test"
        for attribute in ATTRIBUTES:
            question, answer = QUESTIONS[attribute].format(name=person.name), person.facts[attribute]
            known = {"name": person.name, "attribute": attribute, "question": f"{question}\nAnswer:", "answer": answer}
            yield document(id=f"{domain}/{number}/{attribute}", text=f"{question}\nAnswer: {answer}.", domain=domain,
                           source=how.name, metadata=known)


def _turns(many: int, draw: random.Random) -> list[int]:
    """Which wording each biography has: all of them before one comes again."""
    from trainwright.data.sources._biographies import ATTRIBUTES, SENTENCES
    known = len(SENTENCES[ATTRIBUTES[0]])
    return [place for _ in range(-(-many // known)) for place in draw.sample(range(known), known)][:many]
