"""Zero-shot classification: a model that knows, one that always says the same, and what prompts are made."""
from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.evaluate.test_retrieval import ctx
from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.evaluate import zero_shot
from trainwright.evaluate.zero_shot import ZeroShot

__all__ = ["ctx"]


@pytest.fixture
def prompts(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The prompts that were asked for, of a model that knows red from blue where it reads the words."""
    asked: list[str] = []

    def texts(model: nn.Module, every: list[str], *more: Any) -> Tensor:
        asked[:] = every
        return torch.tensor([[float("red" in p.lower()), float("blue" in p.lower())] for p in every])

    def images(model: nn.Module, of: Any, *more: Any) -> Tensor:
        classes = [row["domain"] for row in of.rows]
        return torch.tensor([[float(c == "red"), float(c == "blue")] for c in classes])
    monkeypatch.setattr(zero_shot, "text_embeddings", texts)
    monkeypatch.setattr(zero_shot, "image_embeddings", images)
    return asked


def test_the_class_whose_prompts_are_most_similar_is_the_answer(ctx: Context, prompts: list[str]) -> None:
    found = ZeroShot(templates=("A {} thing.", "{}")).measure(nn.Identity(), ctx)
    assert prompts == ["A blue thing.", "blue", "A red thing.", "red"]
    assert {found[f"accuracy/{name}"] for name in ("red", "blue", "mean", "all")} == {1.0}
    assert found["chance/mean"] == 0.5 and 0.5 <= found["chance/all"] < 1


def test_words_stand_for_the_name_of_a_class(ctx: Context, prompts: list[str]) -> None:
    """Blue is called red, and red too: the first class is said of all, which is right as often as chance."""
    method = ZeroShot(templates=("{}.",), words={"blue": ("Red", "A red one")})
    found = method.measure(nn.Identity(), ctx)
    assert prompts == ["Red.", "A red one.", "red."]
    assert found["accuracy/mean"] == found["chance/mean"] == 0.5
    assert {found["accuracy/red"], found["accuracy/blue"]} == {0.0, 1.0}


def test_the_prompts_of_a_class_are_averaged(ctx: Context, prompts: list[str]) -> None:
    """One prompt of three that says another colour does not decide."""
    words = {"blue": ("blue", "light blue", "red"), "red": ("red",)}
    assert ZeroShot(words=words).measure(nn.Identity(), ctx)["accuracy/mean"] == 1.0


def test_mistakes_are_named(ctx: Context, prompts: list[str]) -> None:
    with pytest.raises(UserError, match=r"words names the class 'rde', which .* \(did you mean 'red'\?\)"):
        ZeroShot(words={"rde": ("x",)}).measure(nn.Identity(), ctx)
    with pytest.raises(UserError, match=r"have pictures of 1 classes, and it takes two"):
        ZeroShot(domains=("red",)).measure(nn.Identity(), ctx)
    for settings in ({"templates": ("no place",)}, {"templates": ()}, {"words": {"red": ()}}, {"most": 1}):
        with pytest.raises(ValueError):
            ZeroShot(**settings)  # type: ignore[arg-type]
