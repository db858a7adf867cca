"""Log-probabilities and entropies in tiles: the same as those of whole logits, values and gradients."""
from __future__ import annotations

import pytest
import torch
from torch import Tensor

from trainwright.check import tiny
from trainwright.core.context import Context
from trainwright.core.method import UNTRAINED
from trainwright.lm import cross_entropy
from trainwright.lm.logprobs import answer_logprobs, tiled_logprobs, token_logprobs


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiles of 5 positions and words, so that a few make several."""
    monkeypatch.setattr(cross_entropy, "CPU_TILE", 5)


def whole(hidden: Tensor, weight: Tensor, bias: Tensor, targets: Tensor, temperature: float):
    logp = ((hidden @ weight.T + bias) / temperature).log_softmax(-1)
    return logp.gather(1, targets[:, None])[:, 0], -(logp.exp() * logp).sum(1)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_tiles_give_what_whole_logits_give(temperature: float) -> None:
    g = torch.Generator().manual_seed(0)
    given = [torch.randn(n, generator=g).requires_grad_() for n in ((13, 6), (17, 6), (17,))]
    targets = torch.randint(17, (13,), generator=g)
    ups = [torch.randn(13, generator=g) for _ in range(2)]
    found = []
    for way in (tiled_logprobs, whole):
        made = way(*given, targets, temperature)
        grads = torch.autograd.grad(sum((u * m).sum() for u, m in zip(ups, made, strict=True)), given)
        found.append([*made, *grads])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_a_word_that_is_impossible_costs_nothing() -> None:
    hidden, bias = torch.ones(2, 3, requires_grad=True), torch.zeros(8)
    bias[6:] = float("-inf")
    logp, entropy = tiled_logprobs(hidden, torch.zeros(8, 3), bias, torch.tensor([0, 5]))
    torch.testing.assert_close(logp, torch.full((2,), -torch.tensor(6.0).log().item()))
    torch.testing.assert_close(entropy, -logp)
    (logp.sum() + entropy.sum()).backward()
    assert hidden.grad is not None and hidden.grad.isfinite().all()


def test_the_log_probabilities_of_a_model_are_those_of_its_logits() -> None:
    for kind in (tiny.LLAMA, tiny.GPT2):
        model = tiny.model(kind).eval()
        ids = torch.arange(3, 27).view(2, 12)
        targets = torch.roll(ids, -1, 1).clone()
        targets[:, :5] = UNTRAINED
        places = torch.arange(12).expand(2, 12)
        made = token_logprobs(model, {"input_ids": ids, "targets": targets, "position_ids": places}, 0.5)
        logp = (model(input_ids=ids).logits / 0.5).log_softmax(-1)
        right = logp.gather(2, targets.clamp(min=0)[..., None])[..., 0]
        right = right.masked_fill(targets == UNTRAINED, 0)
        torch.testing.assert_close(made.logp, right, rtol=1e-5, atol=1e-5)
        entropy = -(logp.exp() * logp).sum(-1).masked_fill(targets == UNTRAINED, 0)
        torch.testing.assert_close(made.entropy, entropy, rtol=1e-5, atol=1e-5)


def rows(sizes: list[int], width: int) -> dict[str, Tensor]:
    """Rows of so many tokens each, of which the second half is the answer."""
    g = torch.Generator().manual_seed(1)
    ids, seen = torch.zeros(len(sizes), width, dtype=torch.int64), torch.zeros(len(sizes), width).long()
    targets = torch.full_like(ids, UNTRAINED)
    for r, n in enumerate(sizes):
        ids[r, :n], seen[r, :n] = torch.randint(3, 299, (n,), generator=g), 1
        targets[r, n // 2 - 1:n - 1] = ids[r, n // 2:n]
    return {"input_ids": ids, "attention_mask": seen, "targets": targets}


@pytest.mark.parametrize("kind", [tiny.LLAMA, tiny.GPT2])
def test_packed_answers_equal_padded_ones(kind: str) -> None:
    model, batch = tiny.model(kind).double(), rows([20, 7, 4, 12, 9, 2], 24)
    found = []
    for packed in (False, True):
        logp, tokens = answer_logprobs(model, batch, Context(), packed)
        grads = torch.autograd.grad((logp * torch.arange(1, 7)).sum(), list(model.parameters()))
        found.append([logp, tokens, *grads])
    assert found[0][1].tolist() == [10, 4, 2, 6, 5, 1]
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)
