"""Documents through a model: each as if it were alone, and nothing twice."""
from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.corpus.test_selecting import rows
from trainwright import families
from trainwright.check import documents, tiny
from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.corpus import tokens
from trainwright.lm import scoring

LONG = " ".join(["wheat and barley while rain falls over a quiet valley"] * 12)


def docs(folder: Path) -> Any:
    """The tiny corpus' rows, with an empty document and one longer than the model reads at once."""
    usual = {"domain": "d", "source": "s", "metadata": "{}", "messages": None}
    return documents.table([usual | {"id": "empty", "text": ""}, usual | {"id": "long", "text": LONG}])


def alone(model: torch.nn.Module, text: str, length: int) -> tuple[float, int]:
    """Loss of one document by the model's own loss, a part of ``length`` tokens after the other."""
    encoded = tokens.Encoder(tiny.tokenizer(), None).encode([tokens.Document("x", text, None)])[0][0]
    ids = torch.tensor(encoded.astype("int64"))
    nats, n = 0.0, 0
    for at in range(0, len(ids) - 1, length):
        part = ids[at:at + length + 1]
        logits = model(part[None, :-1]).logits[0].double()
        nats += float(torch.nn.functional.cross_entropy(logits, part[1:], reduction="sum"))
        n += len(part) - 1
    return nats / max(n, 1), n


def test_a_loss_is_that_of_the_document_alone(tmp_path: Path) -> None:
    ctx = tiny.curating(tmp_path)
    reader = scoring.Reader.of(ctx.path("model"), ctx, "test", length=32, batch_tokens=300)
    found = {r["id"]: r for r in scoring.losses(docs(tmp_path), reader).to_pylist()}
    texts = {r["id"]: r["text"] for r in rows(docs(tmp_path)) if r["messages"] is None}
    model = families.load(ctx.path("model"), "test").eval()
    assert found["empty"]["loss"] is None and found["empty"]["tokens"] == 0
    with torch.no_grad():
        for name in [n for n in texts if n != "empty"][:12] + ["long"]:
            loss, n = alone(model, texts[name], 32)
            assert found[name]["tokens"] == n and abs(found[name]["loss"] - loss) < 1e-5, name
    assert found["long"]["tokens"] > 64


def test_of_a_conversation_only_the_answer_counts(tmp_path: Path) -> None:
    ctx = tiny.curating(tmp_path)
    reader = scoring.Reader.of(ctx.path("model"), ctx, "test")
    found = {r["id"]: r for r in scoring.losses(docs(tmp_path), reader).to_pylist()}
    chat = next(r for r in rows(docs(tmp_path)) if r["messages"])
    answer = json.loads(chat["messages"])[1]["content"]
    assert 0 < found[chat["id"]]["tokens"] <= len(reader.encoder.backend.encode(answer).ids) + 2


def test_embeddings_are_means_of_the_last_states(tmp_path: Path) -> None:
    ctx = tiny.curating(tmp_path)
    reader = scoring.Reader.of(ctx.path("model"), ctx, "test", length=32, batch_tokens=300)
    table = rows(docs(tmp_path))
    found = {
        r["id"]: torch.tensor(r["embedding"]) for r in scoring.embeddings(docs(tmp_path), reader).to_pylist()
    }
    assert not found["empty"].any()
    one = min((r for r in table if r["messages"] is None and r["text"]), key=lambda r: len(r["text"]))
    ids = reader.encoder.encode([tokens.Document("x", one["text"], None)])[0][0].astype("int64")[:-1]
    assert len(ids) <= 32
    with torch.no_grad():
        states = reader.model.get_decoder()(torch.tensor(ids)[None])[0][0]
    assert torch.allclose(found[one["id"]], states.mean(0), atol=1e-5)


def test_what_was_scored_is_not_scored_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scoring, "BLOCK", 32)
    ctx = tiny.curating(tmp_path)
    reader = scoring.Reader.of(ctx.path("model"), ctx, "test")
    whole, asked = scoring.losses(docs(tmp_path), reader), []
    before = scoring.token_losses
    monkeypatch.setattr(scoring, "token_losses", lambda *a: (asked.append(1), before(*a))[1])
    parts = sorted((tmp_path / f"losses-{reader.key}").glob("*.parquet"))
    assert len(parts) == 4
    assert scoring.losses(docs(tmp_path), reader) == whole and not asked
    parts[1].unlink()                                             # as if the run had been killed there
    assert scoring.losses(docs(tmp_path), reader) == whole and asked


def test_a_model_without_a_tokenizer_is_named(tmp_path: Path) -> None:
    families.save(tiny.model(), tmp_path, None)
    with pytest.raises(UserError, match=r"score_loss: the model in .* has no tokenizer"):
        scoring.Reader.of(tmp_path, Context(folder=tmp_path), "score_loss")
