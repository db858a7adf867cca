"""KTO: the numbers of the paper's equation by hand, and equal to TRL's on one batch."""
from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.align.pairs import batch, context, moved, repeated
from trainwright.align.kto import Kto, exchanged
from trainwright.check import tiny
from trainwright.core.batches import cut
from trainwright.core.errors import UserError
from trainwright.core.method import UNTRAINED, Batch

SIGMOID = torch.sigmoid


def made(**given: Any) -> Batch:
    """What ``represent`` would make of four answers of a step."""
    told = {"logp": [-3.0, -5, -2, -8], "reference": [-4.0, -4, -4, -4], "moved": [1.0, -0.4, 0.6, 0.8],
            "good": [1, 0, 1, 0], "learned": [1, 1, 1, 1], "both": [1, 1, 1, 1]} | given
    return {name: torch.tensor(values)[:, None] for name, values in told.items()}


def test_the_loss_is_that_of_the_paper() -> None:
    method, ctx = Kto(beta=0.5, desirable=1.5, undesirable=2.0), context()
    values = method.loss(tiny.model(), made(), {}, ctx)[:, 0]
    z, r = 0.5, torch.tensor([1.0, -1, 2, -4])
    right = torch.where(torch.tensor([True, False, True, False]), 1.5 * (1 - SIGMOID(0.5 * (r - z))),
                        2.0 * (1 - SIGMOID(0.5 * (z - r))))
    torch.testing.assert_close(values, right)
    told = {name: float(v[0][0]) for name, v in ctx.notes.items()}
    assert told == pytest.approx({"kl": 0.5, "rewards/chosen": 0.75, "rewards/rejected": -1.25,
                                  "rewards/margins": 2.0})


def test_the_distance_is_never_negative_and_has_no_gradient() -> None:
    given = made(moved=[-3.0, 1.0, -2.0, 0.5])
    given["moved"].requires_grad_()
    ctx = context()
    values = Kto().loss(tiny.model(), given, {}, ctx)
    assert ctx.notes["kl"][0][0] == 0 and not values.requires_grad


def test_answers_change_places_with_their_neighbours() -> None:
    """Prompts of 2 and 3 tokens, answers of 3 and 1; the third row is cut in front."""
    ids = torch.tensor([[5, 6, 11, 12, 13, 0], [7, 8, 9, 21, 0, 0], [1, 2, 3, 4, 31, 0],
                        [5, 41, 42, 43, 44, 0]])
    seen = (ids > 0).long()
    targets = torch.full_like(ids, UNTRAINED)
    for row, (first, end) in enumerate(((1, 5), (2, 4), (3, 5), (0, 5))):
        targets[row, first:end - 1] = ids[row, first + 1:end]
    new = exchanged({"input_ids": ids, "attention_mask": seen, "targets": targets})
    assert new["input_ids"].tolist() == [[5, 6, 21, 0, 0, 0], [7, 8, 9, 11, 12, 13],
                                         [3, 4, 41, 42, 43, 44], [5, 31, 0, 0, 0, 0]]
    assert torch.equal(new["attention_mask"], (new["input_ids"] > 0).long())
    assert new["targets"].tolist() == [
        [-100, 21, -100, -100, -100, -100], [-100, -100, 11, 12, 13, -100],
        [-100, 41, 42, 43, 44, -100], [31, -100, -100, -100, -100, -100]]


def test_the_halves_of_pairs_are_good_and_bad_answers() -> None:
    pairs, ctx, method = repeated(batch(4), without=2), context(), Kto()
    told = method.represent(moved(), pairs, {}, ctx)
    assert told["good"].tolist() == [[1, 0]] * 4 and told["learned"][2].tolist() == [0, 1]
    assert told["both"].tolist() == [[1, 1], [1, 1], [0, 1], [0, 1]] and method.count(pairs) == 7
    labelled = {"input_ids": pairs["chosen_ids"], "attention_mask": pairs["chosen_attention_mask"],
                "targets": pairs["chosen_targets"], "labels": torch.tensor([1, 0, 1, 1])}
    single = method.represent(moved(), labelled, {}, ctx)
    torch.testing.assert_close(single["logp"][:, 0], told["logp"][:, 0])
    torch.testing.assert_close(single["moved"][:, 0], told["moved"][:, 0])
    assert single["good"][:, 0].tolist() == [1, 0, 1, 1]


@pytest.mark.parametrize("variant", ["kto", "apo_zero"])
def test_micro_batches_bend_nothing(variant: str, tmp_path: Path) -> None:
    run = tiny.stage(Kto(variant=variant), tmp_path)
    run.run(until=2)
    pairs = repeated(run.pull(), without=5)
    whole, parts = (run.gradients(cut(pairs, n)) for n in (1, 4))
    for name, grad in whole.items():
        torch.testing.assert_close(parts[name], grad, rtol=1e-5, atol=1e-6)


def test_batches_that_it_cannot_read() -> None:
    pairs = batch(4)
    with pytest.raises(UserError, match="odd number of rows"):
        Kto().count({n: t[:3] if isinstance(t, Tensor) else t for n, t in pairs.items()})
    with pytest.raises(UserError, match="has no labels"):
        Kto().count({"input_ids": pairs["chosen_ids"]})
    with pytest.raises(UserError, match="a label is 1"):
        Kto().count({"input_ids": pairs["chosen_ids"], "attention_mask": pairs["chosen_attention_mask"],
                     "targets": pairs["chosen_targets"], "labels": torch.tensor([1, 0, 2, 1])})


@pytest.mark.parametrize(("variant", "theirs"), [("kto", "kto"), ("apo_zero", "apo_zero_unpaired")])
def test_losses_and_gradients_are_those_of_trl(variant: str, theirs: str, tmp_path: Path) -> None:
    trl, datasets = pytest.importorskip("trl"), pytest.importorskip("datasets")
    rows = [{"prompt": "how many", "completion": " apples are left in that", "label": True},
            {"prompt": "please tell me", "completion": " or", "label": False}]
    settings = trl.KTOConfig(output_dir=str(tmp_path), report_to=[], use_cpu=True, bf16=False, max_length=64,
                             per_device_train_batch_size=2, beta=0.3, undesirable_weight=1.5,
                             disable_tqdm=True, loss_type=theirs)
    trainer = trl.KTOTrainer(model=moved(), ref_model=tiny.model(), args=settings,
                             processing_class=tiny.tokenizer(),
                             train_dataset=datasets.Dataset.from_list(rows))
    given = next(iter(trainer.get_train_dataloader()))
    trainer.model.eval()
    loss = trainer._compute_loss(trainer.model, dict(given), False)
    right = torch.autograd.grad(loss, list(trainer.model.parameters()))
    targets = torch.full_like(given["input_ids"], UNTRAINED)
    targets[:, :-1] = given["input_ids"][:, 1:].where(given["completion_mask"][:, 1:] > 0, UNTRAINED)
    # room for the longer prompt with the longer answer
    ours: Batch = {n: torch.nn.functional.pad(t, (0, 8), value=fill) for n, t, fill in (
        ("input_ids", given["input_ids"], 0), ("attention_mask", given["attention_mask"], 0),
        ("targets", targets, UNTRAINED))} | {"labels": torch.as_tensor(given["label"]).long()}
    model, method, ctx = moved(), Kto(variant=variant, beta=0.3, undesirable=1.5), context()
    mine = method.loss(model, method.represent(model, ours, {}, ctx), {}, ctx).mean()
    torch.testing.assert_close(mine, loss, rtol=1e-5, atol=1e-5)
    for a, b in zip(torch.autograd.grad(mine, list(model.parameters())), right, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
