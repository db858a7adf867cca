"""A model makes its own pairs: the rules are the paper's, and a round sees what came before it."""
from __future__ import annotations

import json
import random
import re
from pathlib import Path
from typing import Any

import pytest

from tests.data.frames import told
from tests.lm.writing.stub_writer import serving
from trainwright.check import documents as made_up
from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.corpus.documents import empty
from trainwright.data.write.self_guide import BANNED, SelfGuide, balanced, bounds, label_of, passes

SHOWN = [{"input": "4 + 17", "output": "21"}, {"input": "3 + 9", "output": "12"},
         {"input": "20 + 31", "output": "51"}]
TASK: dict[str, Any] = {"instruction": "Add the two numbers.", "demonstrations": SHOWN, "rounds": 3,
                        "per_round": 8}


def rule(prompt: str, body: dict[str, Any]) -> str:
    """Writes sums by the seed, some of them noisy; takes them out of a reply; adds."""
    seed = body["seed"]
    if prompt.startswith("A task"):
        return f"{seed % 80 + 10} + {seed % 7}." if seed % 5 else "Sure, an input: 1 + 1"
    if prompt.startswith("Somebody"):
        assert body["temperature"] == 0.0
        return reply(prompt).removesuffix(".")
    a, b = re.findall(r"Question: (\d+) \+ (\d+)\nAnswer:\Z", prompt)[0]
    return str(int(a) + int(b))


def reply(prompt: str) -> str:
    """What a prompt for the bare input shows as the reply."""
    return prompt.split("The reply was:\n\n")[1].split("\n\nCopy")[0]


def made(folder: Path, stub: Any, documents: Any = None, **more: Any) -> dict[str, Any]:
    how = stub.method(SelfGuide, **TASK | more)
    return told(how.apply(empty() if documents is None else documents, Context(folder=folder, seed=3)))


def test_pairs_are_conversations_with_the_whole_prompt(tmp_path: Path) -> None:
    with serving(rule) as stub:
        found = made(tmp_path, stub, made_up.table())
        new = {n: r for n, r in found.items() if r["source"] == "self_guide"}
        assert len(found) - len(new) == 120 and 8 < len(new) <= 24 and stub.bodies[0]["top_k"] == 40
        for row in new.values():
            asked, said = json.loads(row["messages"])
            pair = json.loads(row["metadata"])
            assert asked["content"].startswith(TASK["instruction"])
            solved = [f"Question: {d['input']}\nAnswer: {d['output']}" for d in SHOWN]
            assert all(one in asked["content"] for one in solved)
            assert asked["content"].endswith(f"Question: {pair['input']}\nAnswer:")
            assert said == {"role": "assistant", "content": str(sum(map(int, pair["input"].split(" + "))))}
        assert len({r["metadata"] for r in new.values()}) == len(new)           # no input twice
        asks = [p for p in stub.prompts if p.startswith("A task")]
        # later rounds show earlier inputs as poor ones
        assert sum("(none yet)" in p for p in asks) == 8 and len(asks) == 24
        poor = [p.split("Weaker ones:\n\n")[1].split("\n\nWrite")[0].splitlines() for p in asks]
        assert max(map(len, poor)) <= 10 and {line[2:] for p in poor for line in p} - {"(none yet)"} <= {
            json.loads(r["metadata"])["input"] for r in new.values()}


def test_rules_by_hand() -> None:
    # mean 6, population deviation 2
    assert bounds(["1234", "12345678"]) == (2, 10)
    # 4 -+ 1.63: cut to whole numbers
    assert bounds(["123", "12345", "1234"]) == (2, 5)
    assert passes("12", (), (2, 10)) and not passes("1", (), (2, 10)) and not passes("x" * 11, (), (2, 10))
    for noisy in ("the inputs", "an output", "a\n\nb", "a \\_\\_ b", "Of course! 3", "", " "):
        assert not passes(noisy, BANNED, None)
    assert passes("Add 3 and 4", BANNED, None)


def test_labels_condition_the_inputs_and_are_balanced(tmp_path: Path) -> None:
    pairs = [("a", "yes"), ("b", "yes"), ("c", "no"), ("d", "yes")]
    assert sorted(said
                  for _, said in balanced(pairs, ("yes", "no", "maybe"), random.Random(0))) == ["no", "yes"]
    assert label_of("I say no.", ("yes", "no")) == "no" and label_of("hm", ("yes", "no")) == ""
    two = ("entailment", "not entailment")
    assert label_of("not entailment", two) == label_of("not entailment", two[::-1]) == "not entailment"
    assert label_of("It is entailment, not neutral", two) == "entailment"
    assert label_of("entailment or not entailment", two) == "entailment", "the first in the text"
    for part in ("I know", "nobody", "non-yes", "no-one", "yes_no"):
        assert label_of(part, ("yes", "no")) == ""
    assert label_of("1 and 12", ("12", "2")) == "12" and label_of("答案是好的", ("坏", "好")) == "好"

    def sort(prompt: str, body: dict[str, Any]) -> str:
        if prompt.startswith("A task"):
            return f"{re.findall(r'right answer is: (.+)[.] Write', prompt)[0]} thing {body['seed'] % 999}"
        if prompt.startswith("Somebody"):
            return reply(prompt)
        return f"It is {prompt.split('Question: ')[-1].split()[0]}"

    shown = [{"input": "a good thing 1", "output": "good"}, {"input": "bad thing 22", "output": "bad"}]
    with serving(sort) as stub:
        found = made(tmp_path, stub, instruction="Judge.", demonstrations=shown, labels=("good", "bad"))
    said = [json.loads(r["metadata"])["output"] for r in found.values()]
    assert said.count("good") == said.count("bad") == len(said) / 2 > 2


def test_a_model_that_cannot_is_told(tmp_path: Path) -> None:
    with serving(lambda prompt, body: "Of course! Here is an input.") as stub, \
            pytest.raises(UserError, match="of 24 inputs that were asked for 0 passed the rules"):
        made(tmp_path, stub)
    for wrong, why in (({"instruction": " "}, "instruction"), ({"demonstrations": []}, "about three"),
                       ({"rounds": 0}, "rounds"),
                       ({"demonstrations": [{"input": "x"}]}, "demonstration 1 must have"),
                       ({"prompts": {"a": ""}}, "no prompt"),
                       ({"labels": ("21", "12")},
                        "the output '51' of demonstration 3 is none of the labels")):
        with pytest.raises(ValueError, match=why):
            SelfGuide(**TASK | wrong)
