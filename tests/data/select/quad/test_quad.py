"""Quad: the influence is that of the inverse Hessian on attention layers, and the bandit goes where it is
high."""
from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from tests.corpus.corpora import Given, build
from tests.data.unigrams import context, kept, written
from tests.lm.architectures import make
from trainwright.check import documents as made_up
from trainwright.check import tiny
from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.corpus import documents
from trainwright.data.select.quad import _bandit as bandits
from trainwright.data.select.quad import _influence
from trainwright.data.select.quad.quad import Quad
from trainwright.lm.scoring import Piece, Reader


def gradients(kind: str = "llama", **settings: Any) -> _influence.Gradients:
    model = make(kind, **settings).requires_grad_(False)
    reader = Reader.of(tiny.curating(Path()).inputs["model"][0], Context(), "test")
    return _influence.Gradients(replace(reader, model=model, length=12, batch_tokens=100))


def pieces(many: int, seed: int = 0, like: float | None = None) -> list[Piece]:
    """Texts of random tokens, the shortest first: a share ``like`` of them from one vocabulary, the rest
    from another. None draws the share anew for each text."""
    draw = np.random.default_rng(seed)
    ids = []
    for size in np.sort(draw.integers(5, 13, size=many)):
        share = draw.uniform() if like is None else like
        ids.append(np.where(draw.uniform(size=size) < share, draw.integers(1, 12, size=size),
                            draw.integers(12, 64, size=size)))
    return [Piece(i, one[:-1], one[1:]) for i, one in enumerate(ids)]


def flat(gradient: _influence.Gradient) -> torch.Tensor:
    return torch.cat([one.flatten() for one in gradient.values()])


@pytest.mark.parametrize(("kind", "names"), [
    ("llama", ["q_proj", "k_proj", "v_proj", "o_proj"]), ("qwen3", ["q_proj", "k_proj", "v_proj", "o_proj"]),
    ("gpt2", ["c_attn", "c_proj"]), ("gpt_neox", ["query_key_value", "dense"])])
def test_attention_projections_are_in_and_nothing_else(kind: str, names: list[str]) -> None:
    """And the gradient of each is that of its weight, transposed where the layer keeps it so."""
    asked = gradients(kind)
    assert sorted(n.rpartition(".")[2] for n in asked.layers) == sorted(names * 2)
    assert all("mlp" not in n for n in asked.layers)
    model, given = asked.reader.model, pieces(3)
    found = dict(asked.each(given))
    for piece in given:
        ids, targets = torch.from_numpy(piece.ids)[None], torch.from_numpy(piece.targets)
        loss = torch.nn.functional.cross_entropy(model(input_ids=ids).logits[0], targets)
        slopes = torch.autograd.grad(loss, [layer.weight for layer in asked.layers.values()])
        for name, slope in zip(asked.layers, slopes, strict=True):
            ours = found[piece.document][name].float()
            torch.testing.assert_close(ours.T if kind == "gpt2" else ours, slope, rtol=1e-3, atol=1e-6)


def test_the_inverse_product_comes_back() -> None:
    asked = gradients("gpt2")
    curvature = asked.curvature(pieces(20), 0.1)
    gradient = next(asked.each(pieces(1, seed=5)))[1]
    for name, one in curvature.items():
        turned = one.inverse(gradient[name])
        torch.testing.assert_close(one.product(turned), gradient[name], rtol=1e-6, atol=1e-12)
        assert float((turned * one.damping
                      - gradient[name]).norm() / gradient[name].norm()) > 0.1, "more than a damping alone"


def test_eigenvalues_are_the_fisher_matrix_in_the_kronecker_basis() -> None:
    """The entries of lambda are the diagonal of H, rotated; their sum is its trace, whatever the basis."""
    asked, given = gradients(num_hidden_layers=1), pieces(20)
    curvature = asked.curvature(given, 0.1)
    name = next(n for n in curvature if n.endswith("k_proj"))
    rows = torch.stack([gradient[name].flatten() for _, gradient in asked.each(given)])
    fisher = rows.T @ rows / len(given)
    basis = torch.kron(curvature[name].outputs, curvature[name].inputs)
    torch.testing.assert_close((basis.T @ fisher @ basis).diagonal(), curvature[name].eigenvalues.flatten())
    torch.testing.assert_close(basis.T @ basis, torch.eye(len(basis), dtype=torch.float64))


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "settings"), [
    ("llama", {"num_hidden_layers": 1, "hidden_size": 8, "num_attention_heads": 2, "num_key_value_heads": 1}),
    ("gpt2", {"n_layer": 1, "n_embd": 8, "n_head": 2})])
def test_influence_ranks_samples_as_the_exact_inverse_does(kind: str, settings: dict[str, int]) -> None:
    asked = gradients(kind, **settings)
    target, pool = pieces(200, seed=1, like=0.8), pieces(80, seed=2)
    curvature = asked.curvature(target, Quad().damping)
    aim = flat(_influence.mean_direction(asked, target, curvature))
    rows = torch.stack([flat(g) for _, g in asked.each(target)])
    candidates = torch.nn.functional.normalize(torch.stack([flat(g) for _, g in asked.each(pool)]))
    fisher = rows.T @ rows / len(rows)
    sizes = [one.eigenvalues.numel() for one in curvature.values()]
    damping = torch.cat([torch.full((n,), one.damping)
                         for n, one in zip(sizes, curvature.values(), strict=True)]).double().diag()
    by_layer = fisher * torch.block_diag(*(torch.ones(n, n) for n in sizes))

    def agreement(direction: torch.Tensor, hessian: torch.Tensor) -> float:
        exact = torch.nn.functional.normalize(torch.linalg.solve(hessian + damping, rows.T).T).mean(0)
        return float(spearmanr(candidates @ direction, candidates @ exact).statistic)

    plain = torch.nn.functional.normalize(rows).mean(0)
    assert agreement(aim, by_layer) >= 0.9 > agreement(plain, by_layer), "the inverse matters, and this is it"
    little = "that layers depend on each other matters little"
    assert agreement(aim, fisher) >= 0.85 > agreement(plain, fisher), little


# ---- the bandit ----------------------------------------------------------------------------


def played(means: list[float], exploration: float, budget: int, arms: int = 1,
           block: int = 10) -> bandits.Played:
    """Clusters of 100 documents whose influence scatters a little around these means."""
    ids = np.array([f"{c}/{i:03d}" for c in range(len(means)) for i in range(100)], dtype=object)
    label = np.repeat(np.arange(len(means)), 100)
    scatter = dict(zip(ids, np.random.default_rng(0).normal(scale=0.01, size=len(ids)), strict=True))

    def look(names: list[str]) -> dict[str, float]:
        return {name: means[int(name.split("/")[0])] + scatter[name] for name in names}

    scores = bandits.Scores(np.eye(len(means)), exploration)
    return bandits.play(bandits.queues(ids, label, len(means), block, 0.2, 1), scores, look, arms, None,
                        budget)


def clusters_of(ids: list[str], many: int) -> list[int]:
    return [sum(name.startswith(f"{c}/") for name in ids) for c in range(many)]


def test_without_exploration_it_is_the_best_cluster() -> None:
    chosen, measured, seen = played([0.1, 0.3, 0.5, 0.2], exploration=0.0, budget=80)
    assert clusters_of(chosen, 4) == [0, 0, 80, 0] and measured <= 0.2 * 400 and seen == 4
    chosen = played([0.1, 0.48, 0.5, 0.2], exploration=2.0, budget=100).chosen
    assert clusters_of(chosen, 4)[1] > 0 and clusters_of(chosen, 4)[2] > 0 and len(set(chosen)) == 100


def test_the_budget_is_met_and_the_worst_comes_last() -> None:
    chosen, measured, _ = played([0.1, 0.3, 0.5, 0.2], exploration=0.1, budget=390, arms=3)
    assert len(set(chosen)) == 390 and clusters_of(chosen, 4)[1:] == [100, 100, 100]
    assert measured <= 0.2 * 400
    chosen, measured, _ = played([0.1, 0.3, 0.5, 0.2], exploration=0.1, budget=390, block=64)
    assert len(set(chosen)) == 390 and measured <= 0.2 * 400, "so it is where blocks do not fit"


def test_rewards_reach_clusters_that_are_near() -> None:
    centre = np.array([[0.0, 0.0], [0.5, 0.0], [10.0, 0.0]])
    near = bandits.nearness(centre, 0.15)
    most = 0.15 * (0.5 + 10 + 9.5) / 3
    np.testing.assert_allclose(near, [[1, 1 - 0.5 / most, 0], [1 - 0.5 / most, 1, 0], [0, 0, 1]])
    scores = bandits.Scores(near, exploration=0.5)
    scores.add(0, 2.0)
    scores.add(2, -1.0)
    assert scores.touched == 3 and scores.count.tolist() == [1, 1, 1]
    bonus = 0.5 * 1.5 * np.sqrt(2 * np.log(3) / 2)
    np.testing.assert_allclose(scores.values(), np.array([2.0, 2 * (1 - 0.5 / most), -1]) + bonus)


# ---- the whole -----------------------------------------------------------------------------


def rows(kinds: dict[str, str]) -> Any:
    """Thirty documents of each kind, with an embedding that says which kind it is."""
    import daft
    import pyarrow as pa
    made = [one for kind, letters in kinds.items() for one in written(kind, letters, 30)]
    place = [[float(one["domain"] == kind) for kind in kinds] for one in made]
    told = pa.table({"id": pa.array([one["id"] for one in made], pa.large_string()),
                     "embedding": pa.array(place, pa.list_(pa.float32()))})
    return Given(rows=tuple(made)).apply(documents.empty(),
                                         Context()).join(daft.from_arrow(told), on="id", how="left")


def test_documents_like_the_target_are_chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kinds = {"letters": "abcde", "others": "pqrst", "capitals": "KLMNO"}
    build(tmp_path / "target", written("target", "abcde", 12), tune=0.5)
    model = tiny.curating(tmp_path).inputs["model"]
    ctx = context(tmp_path / "s", model=model, target=[tmp_path / "target"])
    method = Quad(clusters=3, arms=1, block=10, scored=0.2, exploration=0.0, count=24, length=32)
    chosen = kept(method.apply(rows(kinds), ctx))
    assert [sum(name.startswith(kind) for name in chosen) for kind in kinds] == [24, 0, 0]
    assert 0 < ctx.notes["quad/scored"][0][0] <= 0.2
    monkeypatch.setattr(_influence.Gradients, "each",
                        lambda *given: pytest.fail("no gradient is computed a second time"))
    assert kept(method.apply(rows(kinds), ctx)) == chosen


def test_mistakes_get_a_sentence(tmp_path: Path) -> None:
    ctx = tiny.curating(tmp_path)
    with pytest.raises(UserError, match=r"reads the column 'embedding'.*embed writes one"):
        Quad().apply(made_up.table(), ctx)
    with pytest.raises(UserError, match="count = 1,000 is more than the 120 documents"):
        Quad(count=1000).apply(made_up.scored(made_up.table()), replace(ctx, folder=tmp_path / "again"))
    with pytest.raises(
        UserError, match=r"the largest of the 100 clusters has \d documents, and it takes 10 to measure one"
    ):
        Quad().apply(made_up.scored(made_up.table()), replace(ctx, folder=tmp_path / "small"))
    with pytest.raises(ValueError, match=r"at most 0\.2"):
        Quad(scored=0.5)
    with pytest.raises(ValueError, match="less than one document"):
        Quad(scored=0.1, block=5)
