"""An audit finds planted contamination, in texts and in the model, and says nothing of a clean one."""
from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import trainwright as tw
from tests.corpus.corpora import build
from tests.evaluate.audit.audits import small
from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.corpus.tokens import open_corpus
from trainwright.evaluate.audit._subject import Subject, _life, found
from trainwright.evaluate.audit._texts import Texts, texts
from trainwright.evaluate.audit._whole import audit
from trainwright.report import audit as page
from trainwright.storage.store import Store

HOW = Texts(documents=60, length=24, batch_size=64)


@pytest.fixture(scope="module")
def exam(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Documents of random words, of which some are kept back."""
    draw = np.random.default_rng(0)
    rows = [{"id": f"{i:03d}", "text": " ".join(f"{w:02d}" for w in draw.integers(0, 99, 16))}
            for i in range(150)]
    build(tmp_path_factory.mktemp("audit") / "exam", rows, tune=0.25, test=0.35)
    return Path(tmp_path_factory.getbasetemp()) / "audit0" / "exam"


@pytest.fixture(scope="module")
def start() -> nn.Module:
    return small(hidden_size=32, num_hidden_layers=2)


def learned(start: nn.Module, exam: Path, *splits: str) -> nn.Module:
    """The model after it has read the documents of some splits many times."""
    corpus, model = open_corpus(exam), copy.deepcopy(start)
    rows = [torch.tensor(t.ids) for split in splits for t in texts(corpus, split, HOW, "d", model, "x")]
    labels = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=-100)
    step = torch.optim.AdamW(model.parameters(), lr=2e-2)
    for _ in range(40):
        step.zero_grad()
        model(input_ids=labels.clamp(min=0), labels=labels).loss.backward()
        step.step()
    return model.eval()


def test_a_clean_model_is_left_in_peace(exam: Path, start: nn.Module) -> None:
    """It has learned its training documents by heart, which is no finding."""
    model = learned(start, exam, "train")
    told = audit(Subject("clean", model, exam, start, "start"), HOW, Context())
    assert told["findings"] == [] and "No sign of contamination" in page.summary(told)[0]
    d = told["domains"]["d"]
    assert d["memorization"]["loss"]["auc"] > 0.9 and d["seen"]["auc_low"] < 0.5 < d["seen"]["auc_high"]
    assert told["calibration"]["gap"] > 0.1, "it is too sure of what it has not read"
    where = [one["where"] for one in told["drift"]]
    assert where == ["embed_tokens", "block 0", "block 1", "norm", "lm_head"]
    assert all(one["move"] > 0.01 for one in told["drift"])


def test_a_model_that_has_read_the_test_is_found(exam: Path, start: nn.Module, tmp_path: Path) -> None:
    """By what the model knows alone: the training documents of the corpus are clean."""
    model = learned(start, exam, "train", "test")
    told = audit(Subject("dirty", model, exam, start, "start"), HOW, Context())
    [finding] = told["findings"]
    assert "seems to have read the test documents of d" in finding and told["leaks"][0]["leaked"] == 0
    assert told["domains"]["d"]["forgetting"]["high"] < 0, "it got better on them"
    written = page.write(tmp_path, told, "trainwright audit dirty").read_text()
    assert json.loads((tmp_path / "audit.json").read_text()) == told
    assert finding in written and written.count("<svg") == 3
    assert not re.search(r'(src|href)="(https?:)?//', written)


def test_a_corpus_that_holds_the_test_is_found(exam: Path, start: nn.Module, tmp_path: Path) -> None:
    """By the texts alone: the model has learned nothing yet."""
    corpus = open_corpus(exam)
    test = [corpus.tokenizer.decode(t.ids, skip_special_tokens=True)
            for t in texts(corpus, "test", HOW, "d", start, "x")][:5]
    web = [{"id": f"web {i}", "text": f"what {i} is said on {i} the web"} for i in range(9)]
    build(tmp_path / "web", [*web, {"id": "dump", "text": "\n".join(test)}], tune=0.0, test=0.0)
    items = [{"question": test[0].upper(), "choices": ["aa bb", "cc dd"], "answer": 0},
             {"question": "seven other words that nobody said, ever", "choices": ["x y", "z"], "answer": 0}]
    (tmp_path / "items.jsonl").write_text("\n".join(map(json.dumps, items)))
    subject = Subject("new", start, exam, read=(tmp_path / "web",), items=str(tmp_path / "items.jsonl"))
    told = audit(subject, HOW, Context())
    assert [s["leaked"] for s in told["leaks"]] == [5, 1] and len(told["findings"]) == 2
    assert told["leaks"][0]["shown"][0]["document"] == "dump" and told["drift"] == []
    assert "There is no base" in page.write(tmp_path / "out", told).read_text()


@pytest.mark.slow
def test_the_store_knows_what_a_model_was_trained_on(tmp_path: Path) -> None:
    """Through two stages: the corpora of both, and the model that it started from; and the command."""
    from typer.testing import CliRunner

    from trainwright.cli import app
    draw = np.random.default_rng(0)
    for name in ("a", "b"):
        rows = [{"text": " ".join(f"{name}{w}" for w in draw.integers(0, 60, 14))} for _ in range(40)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))

    def stage(name: str, kind: str, **more: Any) -> dict[str, Any]:
        return {"name": name, "kind": kind, **more}
    text = [[{"use": "text", "paths": [str(tmp_path / f"{name}.jsonl")]}] for name in ("a", "b")]
    train = {"tokens": 400, "batch_tokens": 200,
             "methods": [{"use": "pack", "length": 50}, {"use": "next_token"}, {"use": "adamw"}]}
    shape = {"type": "llama", "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
             "num_attention_heads": 2, "max_position_embeddings": 64}
    recipe = tw.load({"stage": [
        stage("first", "corpus", vocab_size=300, tune=0.2, test=0.2, methods=text[0]),
        stage("second", "corpus", **{"from": {"tokenizer": "first"}}, tune=0.2, test=0.2, methods=text[1]),
        stage("base", "train", **{"from": {"data": "first"}}, model=shape, **train),
        stage("tuned", "train", **{"from": {"model": "base", "data": "second"}}, **train)]})
    made = tw.run(recipe, tmp_path / "store")
    subject = found("tuned", "first", None, "", Store(tmp_path / "store"), Context())
    assert [folder.name for folder in subject.read] == [made[n].path.name for n in ("second", "first")]
    assert subject.base_name == "base" and subject.base is not None
    said = CliRunner().invoke(app, ["audit", "tuned", "--corpus", "first", "--store", str(tmp_path / "store"),
                                    "--out", str(tmp_path / "page")])
    assert said.exit_code == 0 and "No sign of contamination" in said.output.replace("\n", " ")
    assert "Compared with base" in (tmp_path / "page" / "index.html").read_text()
    with pytest.raises(UserError, match="no artifact 'third'"):
        found("tuned", "third", None, "", Store(tmp_path / "store"), Context())


def test_artifacts_that_were_made_from_each_other_end(tmp_path: Path) -> None:
    """A store may be a stranger's."""
    for key, other in ("01", "10"):
        (tmp_path / f"x-{key * 12}").mkdir()
        inputs = {"model": [{"stage": "x", "hash": other * 12, "artifact": other * 12}]}
        made = {"stage": "x", "kind": "train", "hash": key * 12, "figures": {}, "inputs": inputs}
        (tmp_path / f"x-{key * 12}" / "manifest.json").write_text(json.dumps(made))
    store = Store(tmp_path)
    assert _life(store.named(f"x-{'0' * 12}"), store) == ((), None)
