"""What a hidden state holds is read off it, and what it does not hold is not."""
from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.corpus.corpora import build
from trainwright.check import tiny
from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.corpus.tokens import open_corpus
from trainwright.data.sources.physics_of_lms_3_1 import PhysicsOfLms_3_1
from trainwright.evaluate.knowledge_probe import KnowledgeProbe

HUES, PETS, LUCK = ("red", "blue", "green"), ("cat", "dog"), ("one", "two")


def folder(place: Path, many: int = 96) -> Path:
    """People whose hue is in their name, whose pet a biography hints at right before it says it, and whose
    luck follows from nothing."""
    draw, rows = random.Random(0), []
    for i in range(many):
        name = f"{draw.choice('bdfgklm')}{draw.choice('aeiou')}{i} {'xyz'[i % 3]}"
        pet, luck = draw.randrange(2), draw.choice(LUCK)
        known = {"hue": HUES[i % 3], "pet": PETS[pet], "luck": luck}
        text = f"{name} had luck {luck} . then {HUES[i % 3]} . {'mq'[pet]} {PETS[pet]} ."
        rows.append({"id": f"bio/{i}", "text": text, "domain": "bio", "metadata": {"name": name}})
        domain = "qa" if i < many // 2 else "qa_test"
        rows += [{"id": f"{domain}/{i}/{a}", "domain": domain, "text": f"{a} {i}? {v}",
                  "metadata": {"name": name, "attribute": a, "answer": v}} for a, v in known.items()]
    build(place, rows, tune=0.0, test=0.0)
    return place


def context(place: Path) -> Context:
    return Context(inputs={"data": [place]}, tokenizer=open_corpus(place).tokenizer)


def model_of(ctx: Context) -> Any:
    from trainwright import families
    table = {"type": "llama", **tiny.SHAPES["llama"], "hidden_size": 32,
             "max_position_embeddings": 256, "vocab_size": len(ctx.tokenizer)}
    return families.create(families.from_table(table, ctx.tokenizer, "here"), 0, "here")


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 4])
def test_what_is_there_is_read_and_what_is_not_is_not(tmp_path: Path, rank: int) -> None:
    ctx = context(folder(tmp_path / "c"))
    model = model_of(ctx)
    before = {n: t.clone() for n, t in model.state_dict().items()}
    with torch.no_grad():                                    # as a stage measures
        told = KnowledgeProbe(rank=rank, steps=60, lr=5e-2, batch_size=24).measure(model, ctx)
    assert told["probe_name/hue"] > 0.95, "the name's last token says it"
    assert told["probe_own/pet"] > 0.95 > 0.75 > told["probe_first/pet"], "its hint stands right before it"
    assert told["probe_name/luck"] < 0.75 and told["probe_chance/luck"] < 0.75
    assert told["probe_chance/hue"] == pytest.approx(1 / 3, abs=0.02)
    names = ("hue", "pet", "luck")
    assert told["probe_name/mean"] == pytest.approx(sum(told[f"probe_name/{n}"] for n in names) / 3)
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


def test_places_in_biographies(tmp_path: Path) -> None:
    """Of real biographies: at the name, before the first value, before each value; dates by their month."""
    build(tmp_path / "c", None, PhysicsOfLms_3_1(people=6), tune=0.0, test=0.0)
    ctx = context(tmp_path / "c")
    found = KnowledgeProbe()._places("qa", model_of(ctx), ctx)
    assert len(found["name"]) == len(found["first"]) == 3 and len(found["own"]) >= 15
    for name, first in zip(found["name"], found["first"], strict=True):
        said = ctx.tokenizer.decode(name.ids, skip_special_tokens=True)
        assert ctx.tokenizer.decode(first.ids, skip_special_tokens=True).startswith(said)
        assert set(name.values) == set(first.values) and name.values["birth_date"].isalpha()
    for one in found["own"]:
        (value,) = one.values.values()
        assert value not in ctx.tokenizer.decode(one.ids)
    with pytest.raises(UserError, match="no domain 'quiz'"):
        KnowledgeProbe(train="quiz").measure(model_of(ctx), ctx)
