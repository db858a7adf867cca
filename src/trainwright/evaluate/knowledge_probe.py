"""Where a model keeps what it knows of people: attributes read off hidden states by (nearly) linear probes.

The probing of "Physics of Language Models: Part 3.1, Knowledge Storage and Extraction" (arXiv 2309.14316).
A probe of an attribute is a linear map from one hidden state h [d] of the last layer to its values; the
model is frozen, but for a change of its embeddings E of low rank, trained with the probes, which lets it read
texts of an unusual form:

    logits = V h + c,    E' = E + A B,    A [vocabulary, rank] = 0 at the start,  B [rank, d]

Probes are trained on the people of ``train`` and measured on those of ``test``, as the share of values that
are right; of a birth date, the month is the value. h stands

    probe_name/ATTRIBUTE    at the last token of the name alone (the paper's Q-probing)
    probe_first/ATTRIBUTE   in a biography, right before the first value that it says (P-probing)
    probe_own/ATTRIBUTE     in a biography, right before the attribute's own value (P-probing)

with ``…/mean`` over attributes, and ``probe_chance/ATTRIBUTE``, the share of the most frequent value. Without
augmentation knowledge is found right before its own value alone; with it, it is found at the name, from where
questions can extract it. Where a domain has no questions about people, its documents and their labels are
probed (``probe_name/label`` at the last token). The paper's rank is 2 in biographies and 16 at names, and it
probes all places before values; it has 100,000 people.

Not with fewer people than an attribute has values: the probe has not seen most of those that are asked for.

Errors: no tokenizer; a domain that the corpus lacks, or with neither questions about people nor labels.
"""
from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainwright.core import sharding
from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.core.method import Evaluator
from trainwright.core.settings import Count, Positive
from trainwright.evaluate import _people
from trainwright.families import evaluating
from trainwright.lm.losses import most_positions

DATE = "birth_date"
"""The attribute of which the first word is the value."""


class Place(NamedTuple):
    """A text up to the token whose hidden state is read, and the values that are to be read off it."""

    ids: list[int]
    values: dict[str, str]


class KnowledgeProbe(Evaluator):
    """Measures what probes read off hidden states, at names and in biographies."""

    train: str = "qa"
    """Domain with questions about the people that probes are trained on."""
    test: str = "qa_test"
    """Domain with questions about those that they are measured on."""
    texts: str = "bio"
    """Domain of the biographies."""
    rank: int = 16
    """Rank of the change of the embeddings; 0: none, and the probes are linear."""
    steps: Count = 300
    """Steps of training."""
    lr: Positive = 1e-2
    """Learning rate of the probes, AdamW's."""
    batch_size: Count = 64
    """Texts of a step."""
    families: ClassVar[tuple[str, ...]] = ("causal_lm",)
    makes: ClassVar[tuple[str, ...]] = ("probe_*",)
    example: ClassVar[dict[str, Any]] = {"train": "prose", "test": "code", "steps": 2, "rank": 2,
                                         "batch_size": 4}

    def __post_init__(self) -> None:
        if self.rank < 0:
            raise ValueError(f"rank must be 0 or more, not {self.rank}")

    def measure(self, model: nn.Module, ctx: Context) -> dict[str, float]:
        if ctx.tokenizer is None:
            raise UserError("knowledge_probe: the stage has no tokenizer to read the texts with.")
        sides = [self._places(domain, model, ctx) for domain in (self.train, self.test)]
        told: dict[str, float] = {}
        for where in sides[0]:
            seen, asked = (side.get(where, []) for side in sides)
            if not seen or not asked:
                continue
            found = Probes(model, seen, self, ctx.rng(f"knowledge_probe/{where}", at=0)).right(asked)
            told |= {f"probe_{where}/{name}": value for name, value in found.items()}
            told[f"probe_{where}/mean"] = sum(found.values()) / max(1, len(found))
        for name in {n for one in sides[1]["name"] for n in one.values}:
            values = [one.values[name] for one in sides[1]["name"] if name in one.values]
            told[f"probe_chance/{name}"] = max(map(values.count, set(values))) / len(values)
        return dict(sorted(told.items()))

    def _places(self, domain: str, model: nn.Module, ctx: Context) -> dict[str, list[Place]]:
        """The places of each kind, of the people of a domain."""
        most, tokenizer = most_positions(model), ctx.tokenizer
        known = _people.facts(ctx, domain, self.name)
        if not known:
            rows = [r for r in _people.rows(ctx, domain, self.name) if r["label"] is not None]
            if not rows:
                raise UserError(f"knowledge_probe: the domain {domain!r} has neither questions about people "
                                "(name, attribute and answer in the metadata) nor labels.")
            read = [Place(tokenizer(r["text"])["input_ids"][:most], {"label": r["label"]}) for r in rows]
            return {"name": [one for one in read if one.ids]}
        found: dict[str, list[Place]] = {"name": [], "first": [], "own": []}
        for person in _people.people(ctx, domain, self.texts, self.name):
            values = {n: v.split()[0] if n == DATE else v for n, v in person.facts.items()}
            found["name"].append(Place(tokenizer(person.name)["input_ids"], values))
            for text in person.texts[:1]:
                ids, at = _people.read(tokenizer, text, person.facts)
                if at:
                    found["first"].append(Place(ids[:min(first for first, _ in at.values())], values))
                found["own"] += [Place(ids[:first], {n: values[n]}) for n, (first, _) in at.items()]
        return {where: [one for one in places if most is None or len(one.ids) <= most]
                for where, places in found.items()}


def _states(model: Any, ids: Tensor, change: Sequence[Tensor]) -> Tensor:
    """The last hidden states [R, L, d], with embeddings that are changed by A B."""
    inputs = model.get_input_embeddings()(ids)
    if change:
        inputs = inputs + change[0][ids] @ change[1]
    states: Tensor = model.get_decoder()(inputs_embeds=inputs, use_cache=False)[0]
    return states


class Probes:
    """Probes of all attributes, trained on some places."""

    def __init__(self, model: nn.Module, seen: Sequence[Place], how: KnowledgeProbe,
                 draw: torch.Generator) -> None:
        self.model, self.how = model, how
        names = sorted({n for one in seen for n in one.values})
        self.classes = {n: sorted({one.values[n] for one in seen if n in one.values}) for n in names}
        embedding: Any = model.get_input_embeddings()  # type: ignore[operator]
        self.device, (size, width) = embedding.weight.device, embedding.weight.shape
        hidden = self._hidden(seen[:1]).shape[1]
        self.weights = {n: torch.zeros(len(c), hidden, device=self.device) for n, c in self.classes.items()}
        self.biases = {n: torch.zeros(len(c), device=self.device) for n, c in self.classes.items()}
        self.change: list[Tensor] = []
        if how.rank:
            across = torch.randn(how.rank, width, generator=draw) / width**0.5
            self.change = [torch.zeros(size, how.rank, device=self.device), across.to(self.device)]
        self._train(seen, draw)

    change: Sequence[Tensor] = ()

    def _hidden(self, places: Sequence[Place]) -> Tensor:
        """[places, d]: the last hidden state of each."""
        lengths = [len(one.ids) for one in places]
        ids = torch.zeros(len(places), max(lengths), dtype=torch.int64, device=self.device)
        for row, one in zip(ids, places, strict=True):
            row[:len(one.ids)] = torch.tensor(one.ids)
        states: Tensor = sharding.within(self.model, _states, ids, self.change)
        return states[torch.arange(len(places)), torch.tensor(lengths) - 1].float()

    def _train(self, seen: Sequence[Place], draw: torch.Generator) -> None:
        trained = [*self.weights.values(), *self.biases.values(), *self.change]
        for one in trained:
            one.requires_grad_(True)
        optimizer = torch.optim.AdamW(trained, lr=self.how.lr, weight_decay=0.01)
        with evaluating(self.model), torch.enable_grad():
            for _ in range(self.how.steps):
                chosen = torch.randint(len(seen), (min(self.how.batch_size, len(seen)),), generator=draw)
                loss = self._loss([seen[i] for i in chosen.tolist()])
                for one, slope in zip(trained, torch.autograd.grad(loss, trained, allow_unused=True),
                                      strict=True):
                    one.grad = slope                               # the model's own gradients stay untouched
                optimizer.step()

    def _loss(self, places: Sequence[Place]) -> Tensor:
        """The mean cross-entropy of each attribute, summed."""
        hidden, loss = self._hidden(places), torch.zeros((), device=self.device)
        for name, classes in self.classes.items():
            at = [i for i, one in enumerate(places) if name in one.values]
            if at:
                wanted = torch.tensor([classes.index(places[i].values[name]) for i in at], device=self.device)
                loss = loss + F.cross_entropy(F.linear(hidden[at], self.weights[name], self.biases[name]),
                                              wanted)
        return loss

    def right(self, asked: Sequence[Place]) -> dict[str, float]:
        """The share of values of each attribute that the probes read right; one that they have not seen is
        wrong."""
        hits: dict[str, list[float]] = {}
        with torch.no_grad(), evaluating(self.model):
            for begin in range(0, len(asked), self.how.batch_size):
                part = asked[begin:begin + self.how.batch_size]
                hidden = self._hidden(part)
                for name, classes in self.classes.items():
                    best = F.linear(hidden, self.weights[name], self.biases[name]).argmax(1).tolist()
                    for one, guess in zip(part, best, strict=True):
                        if name in one.values:
                            hits.setdefault(name, []).append(float(classes[guess] == one.values[name]))
        return {name: sum(one) / len(one) for name, one in hits.items()}
