"""A corpus stage: what stands in its pipe, and what shapes the text that is written there."""
from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from trainwright.core.recipe import parse
from trainwright.corpus import bpe
from trainwright.life.jobs import jobs
from trainwright.life.run import run
from trainwright.lm.writing.documents import originals
from trainwright.stages.corpus import CorpusStage
from trainwright.storage.store import Store

TEXTS: dict[str, Any] = {"name": "corpus", "kind": "corpus", "vocab_size": 300,
                         "methods": [{"use": "text", "paths": ["texts/prose"]}]}
BASE: dict[str, Any] = {"name": "base", "kind": "train", "from": {"data": "corpus"}, "steps": 1,
                        "batch_size": 8, "methods": [{"use": "pack", "length": 32}],
                        "model": {"type": "llama", "hidden_size": 16, "num_hidden_layers": 1,
                                  "num_attention_heads": 2, "max_position_embeddings": 512}}
WRAP: dict[str, Any] = {"use": "wrap", "styles": ["on"], "prompts": {"on": "{text}"}, "domain": "new",
                        "piece": 200, "writer": {"max_tokens": 8, "at_once": 16}}


def written(life: Path, name: str, *decode: dict[str, Any], temperature: float = 1.0) -> dict[str, str]:
    """What a model that has learned nothing writes behind the texts, by document."""
    from trainwright.corpus.documents import parquet
    wrap = WRAP | {"writer": WRAP["writer"] | {"temperature": temperature}}
    stage = {"name": name, "kind": "corpus", "from": {"data": "corpus", "model": "base"},
             "methods": [wrap, *decode]}
    made = run(parse({"stage": [TEXTS, BASE, stage]}, life), Store(life.parent / "store"))[name]
    rows = parquet(sorted((made.path / "documents").glob("*.parquet")))
    return {row["id"]: row["text"] for row in originals(rows, ["new"], "a test")}


@pytest.mark.slow
def test_decoding_methods_shape_what_a_local_model_writes(life: Path) -> None:
    likeliest = written(life, "likeliest", temperature=0.0)
    assert likeliest == written(life, "only", {"use": "min_p", "p": 1.0}) != written(life, "drawn")


def test_they_stand_apart_from_the_pipe(life: Path) -> None:
    stage = {"name": "two", "kind": "corpus", "from": {"data": "corpus", "model": "base"},
             "methods": [WRAP, {"use": "min_p"}, {"use": "minhash"}]}
    one, *_, two = jobs(parse({"stage": [TEXTS, BASE, stage]}, life), Store(life.parent / "store"))
    assert isinstance(two.stage, CorpusStage)
    places = [(place, [m.name for m in methods]) for place, methods in two.stage.places(two)]
    assert places == [("curate", ["wrap", "minhash"]), ("decode", ["min_p"])]
    assert [place for place, _ in one.stage.places(one)] == ["curate"]


def test_a_tokenizer_and_a_template_may_lie_at_home(life: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both are part of the stage's identity wherever they lie."""
    monkeypatch.setenv("HOME", str(life.parent / "home"))
    bpe.train(["the sea the ship"], 300).save_pretrained(life.parent / "home" / "ckpt")
    template = life.parent / "home" / "talk.jinja"
    template.write_text(
        "{% for m in messages %}{% generation %}{{ m['content'] }}<|endoftext|>{% endgeneration %}{% endfor "
        "%}"
    )
    table = TEXTS | {"tokenizer": "~/ckpt", "chat_template": "~/talk.jinja"}
    recipe = parse({"stage": [{k: v for k, v in table.items() if k != "vocab_size"}]}, life)
    store = Store(life.parent / "store")
    made = run(recipe, store)["corpus"]
    assert "generation" in (made.path / "chat_template.jinja").read_text()
    keys = [jobs(recipe, store)[0].key]
    for file in (template, life.parent / "home" / "ckpt" / "tokenizer.json"):
        file.write_text(file.read_text() + "\n")
        keys.append(jobs(recipe, store)[0].key)
    assert len(set(keys)) == 3


def test_a_tokenizer_of_the_hub_is_taken_from_its_folder(life: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bpe.train(["the sea the ship"], 280).save_pretrained(life.parent / "snapshot")
    asked: list[str] = []

    def download(name: str, where: str) -> Path:
        asked.append(name)
        return life.parent / "snapshot"
    monkeypatch.setattr("trainwright.families.download", download)
    table = {k: v for k, v in TEXTS.items() if k != "vocab_size"} | {"tokenizer": "hf://some/model"}
    made = run(parse({"stage": [table]}, life), Store(life.parent / "store"))["corpus"]
    assert asked == ["hf://some/model"] and (made.path / "tokenizer.json").is_file()
