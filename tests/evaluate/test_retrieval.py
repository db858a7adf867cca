"""Retrieval: ranks and chance by hand, captions that repeat, and a contact sheet on the page of the run."""
from __future__ import annotations

import io
import itertools
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import nn

from tests.pretrain.test_clip import LIFE, write_pictures
from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.core.recipe import load
from trainwright.corpus.building import CorpusSettings, build
from trainwright.data.sources.images import Images
from trainwright.evaluate import retrieval
from trainwright.evaluate._pairs import Held
from trainwright.evaluate.retrieval import Retrieval, caption_ranks, drawn, picture_ranks
from trainwright.life.run import run
from trainwright.report.page import write
from trainwright.storage.store import Store


def test_ranks_by_hand() -> None:
    """Three pictures of two captions: the first two pictures share one."""
    alike = torch.tensor([[0.9, 0.1], [0.2, 0.3], [0.5, 0.4]])
    own = torch.tensor([0, 0, 1])
    assert caption_ranks(alike, own).tolist() == [0, 1, 1]
    assert picture_ranks(alike, own).tolist() == [0, 0], "of two pictures of a caption the best counts"
    assert picture_ranks(alike.flip(1), own).tolist() == [1, 1]


def test_a_model_that_sees_no_difference_finds_nothing() -> None:
    alike, own = torch.zeros(6, 6), torch.arange(6)
    assert caption_ranks(alike, own).tolist() == [5] * 6 and picture_ranks(alike, own).tolist() == [5] * 6


@pytest.mark.parametrize(("candidates", "right", "k"), [(5, 1, 1), (6, 2, 3), (4, 3, 2), (3, 1, 10)])
def test_chance_is_the_share_of_all_draws(candidates: int, right: int, k: int) -> None:
    draws = list(itertools.combinations(range(candidates), min(k, candidates)))
    assert drawn(candidates, right, k) == pytest.approx(sum(min(d) < right for d in draws) / len(draws))


@pytest.fixture
def ctx(tmp_path: Path) -> Context:
    """Of a corpus with 24 pictures of eight captions, a quarter of them held out."""
    write_pictures(tmp_path / "pictures")
    (tmp_path / "c").mkdir()
    work = Context(root=tmp_path, folder=tmp_path / "work" / "step")
    settings = CorpusSettings(vocab_size=300, tune=0.0, test=0.5)
    build(tmp_path / "c", [Images(paths=["pictures"])], settings, work, tmp_path / "cache", lambda line: None)
    return Context(inputs={"data": [tmp_path / "c"]})


def knowing(monkeypatch: pytest.MonkeyPatch, knows: bool) -> None:
    """Embeddings of a model that knows every caption, or of one that always says the next."""
    def spot(caption: str) -> list[float]:
        at = 2 * math.pi * (int(caption[-2]) + 4 * ("red" in caption)) / 8
        return [math.cos(at), math.sin(at)]

    def images(model: nn.Module, of: Any, *more: Any) -> torch.Tensor:
        places = torch.tensor([spot(row["text"]) for row in of.rows])
        return places if knows else places @ torch.tensor([[0.7, 0.7], [-0.7, 0.7]])
    monkeypatch.setattr(retrieval, "image_embeddings", images)
    monkeypatch.setattr(retrieval, "text_embeddings",
                        lambda model, captions, *more: torch.tensor([spot(c) for c in captions]))


def test_captions_that_repeat_have_several_right_pictures(ctx: Context,
                                                         monkeypatch: pytest.MonkeyPatch) -> None:
    knowing(monkeypatch, True)
    found = Retrieval(at=(1, 3), show=2).measure(nn.Identity(), ctx)
    assert {v for name, v in found.items() if name.startswith("recall/")} == {1.0}
    assert 0 < found["chance/text_to_image@1"] < found["chance/text_to_image@3"] < 1
    knowing(monkeypatch, False)
    found = Retrieval(at=(1, 3), show=0).measure(nn.Identity(), ctx)
    assert found["recall/image_to_text@1"] == 0 and found["recall/text_to_image@1"] == 0
    assert found["recall/image_to_text@3"] == 1.0, "the right caption is next to the one that is said"


def test_the_sheet_frames_what_is_right(ctx: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    knowing(monkeypatch, True)
    Retrieval(show=2).measure(nn.Identity(), ctx)
    png, words = ctx.pictures["retrieval"]
    with Image.open(io.BytesIO(png)) as opened:
        colours = {c for _, c in opened.convert("RGB").getcolors(1 << 20)}
    assert (26, 127, 55) in colours and "One is right for 2 of them: A " in words
    ctx.pictures.clear()
    Retrieval(show=0).measure(nn.Identity(), ctx)
    assert not ctx.pictures


def test_mistakes_are_named(ctx: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    every = retrieval.held
    monkeypatch.setattr(retrieval, "held", lambda *given: Held(every(*given).corpus, every(*given).rows[:1]))
    with pytest.raises(UserError, match=r"^retrieval: the 'test' documents have 1 captions of pictures"):
        Retrieval().measure(nn.Identity(), ctx)
    for settings in ({"at": ()}, {"at": (0,)}, {"most": 1}, {"show": -1}):
        with pytest.raises(ValueError, match=r"must be"):
            Retrieval(**settings)  # type: ignore[arg-type]


@pytest.mark.slow
def test_the_page_of_a_run_shows_the_sheet_with_words(tmp_path: Path) -> None:
    write_pictures(tmp_path / "pictures")
    (tmp_path / "life.toml").write_text(LIFE)
    recipe = load(tmp_path / "life.toml")
    made = run(recipe, Store(tmp_path / "store"))["base"]
    told = made.manifest["pictures"]["retrieval"]
    assert (made.path / told["file"]).read_bytes().startswith(b"\x89PNG")
    page = write(tmp_path / "page", "", "Pictures", [made.manifest], [made.path], "").read_text()
    assert page.count('<img src="data:image/png;base64,') == 1
    assert f'alt="{told["words"]}"' in page and "base · retrieval" in page
    numbers = json.loads((made.path / "manifest.json").read_text())["figures"]["evaluation"]
    wanted = {"recall/image_to_text@1", "recall/text_to_image@3", "accuracy/mean", "accuracy/red"}
    assert wanted <= numbers.keys()
