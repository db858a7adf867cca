"""What is written from a document that is held out is held out too, in whichever stage it is written."""
from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.corpus.corpora import build
from tests.corpus.test_splits import split_of
from tests.lm.writing.stub_writer import Stub, serving
from trainwright.data.write.entigraph import Entigraph
from trainwright.data.write.wrap import Wrap

TEXTS = [{"id": f"d{i:03d}", "text": f"Stone {i} lies here. Moss grows on it."} for i in range(30)]
SPLITS: dict[str, Any] = {"tune": 0.2, "test": 0.3}


def rule(prompt: str, body: dict[str, Any]) -> str:
    """Names two entities where it is asked for a list, and else repeats the end of the prompt."""
    if "JSON" in prompt:
        return json.dumps({"summary": f"On {prompt.split()[-7]}.", "entities": ["Stone", "Moss"]})
    return prompt.split("\n\n")[-1].upper()


def writer(stub: Stub, name: str, domain: str = "") -> Any:
    if name == "wrap":
        return stub.method(Wrap, styles=("easy",), domain=domain)
    return stub.method(Entigraph, sizes=(2,), keep_originals=True, domain=domain)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "domain"), [("wrap", ""), ("wrap", "new"), ("entigraph", "")])
def test_beside_the_source_in_one_stage(tmp_path: Path, name: str, domain: str) -> None:
    with serving(rule) as stub:
        build(tmp_path / "one", TEXTS, writer(stub, name, domain), **SPLITS)
    found = split_of(tmp_path / "one")
    held = [one["id"] for one in TEXTS if found[one["id"]] != "train"]
    written = {new: new.partition("#")[0] for new in found if "#" in new}
    assert len(held) > 10 and set(written.values()) == {one["id"] for one in TEXTS}
    assert all(found[new] == found[original] for new, original in written.items())


@pytest.mark.slow
@pytest.mark.parametrize("names", [("wrap",), ("entigraph", "wrap")])
def test_in_later_stages(tmp_path: Path, names: tuple[str, ...]) -> None:
    """A later stage does not even ask the writer about a document that is held out."""
    with serving(rule) as stub:
        build(tmp_path / "0", TEXTS, **SPLITS)
        first = split_of(tmp_path / "0")
        for number, name in enumerate(names):
            build(tmp_path / f"{number + 1}", None, writer(stub, name), data=tmp_path / f"{number}",
                  tokenizer=str(tmp_path / "0"))
        asked = " ".join(stub.prompts)
    found = split_of(tmp_path / f"{len(names)}")
    assert {one: found[one] for one in first} == first
    held = {one for one, split in first.items() if split != "train"}
    assert held and not {new.partition("#")[0] for new in found if "#" in new} & held
    assert not any(f"Stone {int(one[1:])} lies" in asked for one in held)
    assert all(found[new] == "train" for new in found if "#" in new)


@pytest.mark.slow
def test_two_writers_in_one_stage(tmp_path: Path) -> None:
    with serving(rule) as stub:
        build(tmp_path / "one", TEXTS, writer(stub, "entigraph"), writer(stub, "wrap"), **SPLITS)
    found = split_of(tmp_path / "one")
    twice = [new for new in found if new.count("#") == 2]
    assert len(twice) == 60 and all(found[new] == found[new.partition("#")[0]] for new in found)
