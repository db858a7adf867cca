"""The biographies hold the paper's data: unique people, six attributes, and as much augmentation as is
asked for."""
from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.data.frames import told
from trainwright.check import documents
from trainwright.core.context import Context
from trainwright.core.recipe import parse, read
from trainwright.corpus.documents import empty
from trainwright.data.sources.physics_of_lms_3_1 import (
    ATTRIBUTES,
    MONTHS,
    SENTENCES,
    PhysicsOfLms_3_1,
    people,
    places,
    pool,
)
from trainwright.life.run import run
from trainwright.papers import library
from trainwright.storage.store import Store

RECIPE = library.RECIPES / "knowledge_extraction.toml"


def made(seed: int = 0, **settings: Any) -> dict[str, Any]:
    return told(PhysicsOfLms_3_1(**{"people": 40} | settings).apply(empty(), Context(seed=seed)))


def test_pools_are_of_the_papers_sizes() -> None:
    sizes = {name: len(set(found)) for name, found in places().items()}
    assert sizes["city"] == 200 and sizes["university"] == 300 and sizes["major"] == 100
    assert sizes["company"] == 263
    assert [len(set(pool(k, n)))
            for k, n in (("first", 400), ("middle", 400), ("last", 1000))] == [400, 400, 1000]
    sentences = [s for attribute in ATTRIBUTES for s in SENTENCES[attribute]]
    assert len(set(sentences)) == 60 and all(s.count("{who}") == s.count("{what}") == 1 for s in sentences)


def test_people_are_unique_and_a_company_has_one_city() -> None:
    found = list(people(3000, 0))
    assert len({p.name for p in found}) == 3000 and found[:50] == list(people(50, 0)) != list(people(50, 1))
    assert len({(p.facts["company"], p.facts["company_city"])
                for p in found}) == len({p.facts["company"] for p in found}) == 263
    dates = [re.fullmatch(r"(\w+) (\d+), (\d+)", p.facts["birth_date"]) for p in found]
    assert all(d and d[1] in MONTHS and 1 <= int(d[2]) <= 28 and 1900 <= int(d[3]) <= 2099 for d in dates)


def test_one_plain_biography_tells_all_six_in_order_with_the_name_once() -> None:
    rows = made()
    for number, person in enumerate(people(40, 0)):
        text = rows[f"bio/{number}/0"]["text"]
        at = [text.find(person.facts[a]) for a in ATTRIBUTES[:5]]
        assert text.startswith(person.name) and text.count(person.name) == 1
        assert text.count(f"{person.pronoun} ") == 5
        assert at[0] > 0 and at == sorted(at) and person.facts["company_city"] in text[at[-1]:]
        assert len(re.findall(r"[.] |[.]$", text)) == 6
    assert "bio/0/1" not in rows


def test_augmentation_changes_wording_order_and_name() -> None:
    rows, others = made(paraphrases=5, permute=True, full_name=True), made(paraphrases=5)
    person = next(people(40, 0))
    bios = [rows[f"bio/0/{turn}"]["text"] for turn in range(5)]
    assert all(b.count(person.name) == 6 and all(person.facts[a] in b for a in ATTRIBUTES) for b in bios)
    assert len({re.sub(re.escape(person.name), "", b) for b in bios}) == 5
    for found, same in ((bios, False), ([others[f"bio/0/{turn}"]["text"] for turn in range(5)], True)):
        orders = {tuple(sorted(ATTRIBUTES[:4], key=lambda a, b=b: b.find(person.facts[a]))) for b in found}
        assert (orders == {ATTRIBUTES[:4]}) is same
    born = {re.sub(re.escape(person.name), "",
                   next(s for s in re.split(r"(?<=[.]) ", b) if person.facts["birth_date"] in s))
            for b in bios}
    assert len(born) == 5                                                   # five biographies, five wordings


def test_questions_are_about_other_people_than_the_test() -> None:
    rows = made(asked=0.25)
    names = {d: {json.loads(r["metadata"])["name"] for r in rows.values() if r["domain"] == d}
             for d in ("bio", "qa", "qa_test")}
    assert (len(names["qa"]), len(names["qa_test"])) == (10, 30)
    assert names["qa"] | names["qa_test"] == names["bio"]
    assert not names["qa"] & names["qa_test"] and sum(r["domain"] == "qa" for r in rows.values()) == 60
    one = rows[next(n for n in rows if n.startswith("qa_test") and n.endswith("/major"))]
    known = json.loads(one["metadata"])
    assert one["text"] == f"{known['question']} {known['answer']}." and known["attribute"] == "major"


def test_it_is_the_same_each_time_and_adds_to_what_is_there() -> None:
    assert made(seed=1) == made(seed=1) != made(seed=2)
    assert len(told(PhysicsOfLms_3_1(people=2).apply(documents.table(), Context()))) == 120 + 2 + 12
    for wrong in ({"people": 1}, {"paraphrases": 0}, {"asked": 1.5}):
        with pytest.raises(ValueError):
            PhysicsOfLms_3_1(**wrong)


# ---- whatever is fine-tuned afterwards --------------------------------------------------------------------


def stages() -> dict[str, dict[str, Any]]:
    """Those of the recipe that tells stored knowledge from knowledge that can be extracted."""
    return {stage["name"]: stage for stage in read(RECIPE)[0]["stage"]}


def test_the_recipe_fine_tunes_in_the_same_ways_after_either_kind_of_biographies() -> None:
    """A model that has read nothing but biographies learns, in each way, nothing but questions about one half
    of the people, and all are asked about the other half."""
    found, ways = stages(), {}
    (once,), (often,) = (found[kind]["methods"] for kind in ("once", "often"))
    assert once.get("paraphrases", 1) == 1 < often["paraphrases"] and often["permute"]
    for kind in ("once", "often"):
        base = found[f"base_{kind}"]
        tuned = {name: one for name, one in found.items()
                 if one.get("from", {}).get("model") == f"base_{kind}"}
        for stage, read_here in ((base, ["bio"]), *((one, ["qa"]) for one in tuned.values())):
            (rows,) = (m for m in stage["methods"] if m["use"] == "pack")
            assert rows["domains"] == read_here and stage["from"]["data"] == kind
        ways[kind] = base["tokens"], base["model"], base["methods"], [
            (one["tokens"], one["methods"]) for one in tuned.values()]
        judge = found[f"judge_{kind}"]
        assert judge["from"] == {"models": [base["name"], *tuned], "data": kind}
        assert {"memorization", "knowledge_extraction"} == {m["use"] for m in judge["methods"]}
        assert not any("domain" in m for m in judge["methods"]), "the domain is qa_test by default"
    assert ways["once"] == ways["often"]
    rates = [(m["use"], m.get("lr")) for _, methods in ways["once"][3] for m in methods]
    assert len(ways["once"][3]) >= 3 and ("lora", None) in rates
    assert len({lr for use, lr in rates if use == "adamw"}) >= 3


@pytest.mark.slow
def test_stored_and_extracted_are_told_apart_before_and_after_fine_tuning(tmp_path: Path) -> None:
    """The recipe, small: after either kind of biographies the model itself and what was fine-tuned of it, all
    weights or an adapter, say how much they have by heart and how much of the rest they can be asked for."""
    found = stages()
    kept = [one for name, one in found.items() if not name.endswith("gently") and "probe" not in name]
    for stage in kept:
        if stage["kind"] == "corpus":
            stage["methods"][0]["people"] = 4
            stage |= {"vocab_size": 300} if "vocab_size" in stage else {}
        elif stage["kind"] == "train":
            stage |= {"tokens": 4096, "compile": False}
            stage.get("model", {}).update(hidden_size=16, intermediate_size=24, num_hidden_layers=1)
        else:
            stage["from"]["models"] = [m for m in stage["from"]["models"] if not m.endswith("gently")]
    made = run(parse({"seed": 0, "stage": kept}, RECIPE), Store(tmp_path))
    for kind in ("once", "often"):
        told = made[f"judge_{kind}"].figures["numbers"]
        base, tuned = told.pop(f"base_{kind}"), told
        assert set(tuned) == {f"{kind}_full", f"{kind}_lora"}
        for one in (base, *tuned.values()):
            assert {f"{what}/{of}" for what in ("memorized", "exact_match", "answer_loss")
                    for of in (*ATTRIBUTES, "mean")} <= set(one)
        for one in tuned.values():
            assert one["answer_loss/mean"] < base["answer_loss/mean"], "it has seen how answers look"
