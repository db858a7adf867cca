"""What weights are worth: squared gradients over documents, held for those alone that decide what is kept."""
from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F

from tests.corpus.corpora import build, texts
from tests.lm.architectures import make
from trainwright.core.context import Context
from trainwright.corpus.tokens import open_corpus
from trainwright.finetune.lst import Lst
from trainwright.lm.pruned import importance, largest


def test_importance_is_the_sum_of_squared_gradients(tmp_path: Path) -> None:
    build(tmp_path / "c", texts(12), tune=0.0, test=0.0)
    model, ctx = make("llama", vocab_size=400), Context(inputs={"data": [tmp_path / "c"]})
    corpus = open_corpus(tmp_path / "c")
    rows, plain = corpus.select("train"), make("llama", vocab_size=400)
    name = "model.layers.1.mlp.up_proj.weight"
    expected, words = torch.zeros_like(plain.get_parameter(name)), plain.get_input_embeddings().weight
    of_words = torch.zeros(words.shape[1])
    for shard, offset, length in zip(rows.shard, rows.offset, rows.length, strict=True):
        ids = torch.from_numpy(corpus.read(int(shard), int(offset), int(length)))
        logits = plain(input_ids=ids[None]).logits[0, :-1]
        grad, other = torch.autograd.grad(
            F.cross_entropy(logits, ids[1:]), [plain.get_parameter(name), words]
        )
        expected += grad**2
        of_words += (other**2).sum(0)
    found, kept = importance(model, 99, 2, ctx), largest(of_words, 2)
    assert torch.allclose(found[name], expected[:, kept], rtol=1e-3, atol=1e-10)
    assert torch.allclose(found["model.embed_tokens.weight"], of_words, rtol=1e-3, atol=1e-10)
    deciding = {"embed_tokens", "gate_proj", "up_proj", "q_proj", "k_proj", "v_proj"}
    assert {n.split(".")[-2] for n in found} == deciding, "what decides nothing is not held"
    assert all(p.grad is None for p in model.parameters()) and not model.training
    sizes = importance(model, 99, 2, Context())
    hidden = largest(words.abs().sum(0), 2)
    assert torch.equal(sizes[name], model.get_parameter(name).abs()[:, hidden])
    method = Lst(reduction=2, samples=5)
    method.operate(model, ctx)
    assert all(p.grad is None for p in model.parameters())
