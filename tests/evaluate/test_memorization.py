"""What is known by heart is counted token by token, and value by value."""
from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.evaluate.test_knowledge_probe import PETS, context, folder, model_of
from trainwright.evaluate import memorization
from trainwright.evaluate.memorization import Memorization


def test_what_is_known_by_heart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that says every next token right, but for those of the pets."""
    ctx = context(folder(tmp_path / "c", 12))
    pets = [ctx.tokenizer(f" {p}", add_special_tokens=False)["input_ids"][0] for p in PETS]

    def knowing(model: Any, ids: torch.Tensor, places: Any) -> torch.Tensor:
        after = torch.cat([ids[:, 1:], ids[:, :1]], 1)
        after = torch.where(torch.isin(after, torch.tensor(pets)), after + 1, after)
        return torch.nn.functional.one_hot(after, 500).float()

    monkeypatch.setattr(memorization, "token_logits", knowing)
    told = Memorization().measure(model_of(ctx), ctx)
    assert told["memorized/hue"] == told["memorized/luck"] == 1.0 and told["memorized/pet"] == 0.0
    assert told["memorized/mean"] == pytest.approx(2 / 3) and 0.8 < told["memorized/tokens"] < 1
    assert set(Memorization(questions=()).measure(model_of(ctx), ctx)) == {"memorized/tokens"}
