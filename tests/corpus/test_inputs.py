"""What a model reads of a document, by hand: tokens and their targets, pixels, classes."""
from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.corpus.corpora import build, texts
from tests.corpus.test_columns import picture
from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.core.method import Curate
from trainwright.corpus import media
from trainwright.corpus.inputs import NEEDS, Inputs, pixels
from trainwright.corpus.tokens import Corpus, open_corpus
from trainwright.families import Pictures

TALK = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Zoë."}]
ASKED = [*TALK, {"role": "user", "content": "Where?"}]
ROWS = [
    *texts(12),
    {"id": "talk", "messages": TALK, "domain": "chat"},
    {"id": "pair", "domain": "pairs", "columns": {
        "prompt": ASKED, "chosen": [{"role": "assistant", "content": "Here."}],
        "rejected": [{"role": "assistant", "content": "There, far away."}]}},
    {"id": "words", "domain": "words", "columns": {"prompt": "1+1=", "chosen": "2", "rejected": "3 or more"}},
    {"id": "bare", "domain": "words", "columns": {"chosen": "two", "rejected": "three"}},
    *({"id": f"{name}{i}", "text": f"a {name}", "domain": "animals",
       "columns": {"label": name, "number": i / 2}}
      for i in range(4) for name in ("dog", "cat"))]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("inputs") / "c"
    build(place, ROWS, chat_template="chatml", tune=0.0, test=0.0)
    return place


def made(folder: Path, *fields: str, ids: tuple[str, ...] = (), length: int = 64,
         **settings: Any) -> dict[str, Any]:
    corpus = open_corpus(folder)
    inputs, found = Inputs(corpus, fields, length, **settings), corpus.examples("train")
    numbers = [found.ids.tolist().index(name) for name in ids]
    return inputs.batch(found.rows(numbers, inputs.columns))


def learned(folder: Path, ids: Any, targets: Any) -> str:
    return str(open_corpus(folder).tokenizer.decode([t for t in targets.tolist() if t != -100]))


def text(folder: Path, ids: Any, seen: Any) -> str:
    return str(open_corpus(folder).tokenizer.decode(ids[seen > 0]))


def test_the_tokens_of_a_text_are_those_of_the_shards(folder: Path) -> None:
    read, names = open_corpus(folder), ("d/0000", "d/0003", "talk")
    batch, found = made(folder, "text", ids=names), read.select("train")
    for r, name in enumerate(names):
        i = found.id.tolist().index(name)
        at = int(found.shard[i]), int(found.offset[i]), int(found.length[i])
        n = at[2]
        assert batch["input_ids"][r, :n].tolist() == read.read(*at).tolist()
        assert batch["attention_mask"][r].sum() == n
        wanted = np.where(read.read_mask(*at)[1:], read.read(*at)[1:], -100)
        assert batch["targets"][r, :n - 1].tolist() == wanted.tolist()
        assert (batch["targets"][r, n - 1:] == -100).all()
        assert not batch["input_ids"][r, n:].any() and batch["position_ids"][r].tolist() == list(range(64))
    assert all(a.dtype == np.int64 and a.shape == (3, 64) for a in batch.values())


def test_of_a_pair_of_conversations_the_last_answer_is_learned(folder: Path) -> None:
    """Not what the assistant says in the prompt."""
    batch = made(folder, "chosen", "rejected", ids=("pair",), length=256)
    kinds = ("ids", "attention_mask", "targets")
    assert set(batch) == {f"{side}_{what}" for side in ("chosen", "rejected") for what in kinds}
    before = "".join(f"<|im_start|>{m['role']}\n{m['content']}<|im_end|>\n" for m in ASKED)
    for side, answer in (("chosen", "Here."), ("rejected", "There, far away.")):
        ids, seen, targets = (batch[f"{side}_{what}"][0] for what in ("ids", "attention_mask", "targets"))
        assert text(folder, ids, seen) == f"{before}<|im_start|>assistant\n{answer}<|im_end|>\n"
        assert learned(folder, ids, targets) == f"{answer}<|im_end|>"


def test_of_a_pair_of_texts_what_follows_the_prompt_is_learned(folder: Path) -> None:
    batch = made(folder, "chosen", "rejected", ids=("words", "bare"))
    end = "<|endoftext|>"
    for r, (prompt, chosen, rejected) in enumerate((("1+1=", "2", "3 or more"), ("", "two", "three"))):
        for side, answer in (("chosen", chosen), ("rejected", rejected)):
            ids, seen, targets = (batch[f"{side}_{what}"][r] for what in ("ids", "attention_mask", "targets"))
            assert text(folder, ids, seen) == f"{end}{prompt}{answer}{end}"
            assert learned(folder, ids, targets) == f"{answer}{end}"
    first = [int((batch[f"{side}_targets"][0] != -100).argmax()) for side in ("chosen", "rejected")]
    n = first[0] + 1
    assert first[0] == first[1] > 1, "the prompt has the same tokens on both sides"
    assert batch["chosen_ids"][0, :n].tolist() == batch["rejected_ids"][0, :n].tolist()


def test_what_is_too_long_is_cut_where_nothing_is_lost_first(folder: Path) -> None:
    whole = made(folder, "chosen", ids=("pair",), length=256)
    n, first = int(whole["chosen_attention_mask"].sum()), int((whole["chosen_targets"][0] != -100).argmax())
    for length in (n - first, n - first + 3):
        cut = made(folder, "chosen", ids=("pair",), length=length)
        kept = whole["chosen_ids"][0, n - length:n].tolist()
        assert cut["chosen_ids"][0].tolist() == kept, "taken off in front"
        assert learned(folder, cut["chosen_ids"][0], cut["chosen_targets"][0]) == "Here.<|im_end|>"
    cut = made(folder, "chosen", ids=("pair",), length=3)
    assert cut["chosen_ids"][0].tolist() == whole["chosen_ids"][0, first:first + 3].tolist(), "then behind"
    assert (cut["chosen_targets"][0] != -100).sum() == 2
    plain = made(folder, "text", ids=("d/0001",), length=5)
    all_of_it = made(folder, "text", ids=("d/0001",))
    assert plain["input_ids"][0].tolist() == all_of_it["input_ids"][0, :5].tolist()


def test_classes_and_numbers(folder: Path) -> None:
    batch = made(folder, "label", "number", ids=("dog0", "cat1", "dog3"))
    assert batch["labels"].tolist() == [1, 0, 1] and batch["labels"].dtype == np.int64
    assert batch["numbers"].tolist() == [0.0, 0.5, 1.5] and batch["numbers"].dtype == np.float32


def test_classes_that_are_numbers_stay(tmp_path: Path) -> None:
    build(tmp_path / "c",
          [row | {"columns": {"label": label}} for row, label in zip(texts(3), (7, 0, 10), strict=True)],
          tokenizer=None, tune=0.0, test=0.0)
    assert made(tmp_path / "c", "label", ids=("d/0000", "d/0001", "d/0002"))["labels"].tolist() == [7, 0, 10]


def test_what_there_is_to_say_of_pairs(tmp_path: Path) -> None:
    """Two equal answers (also where only what is cut away differs), nothing said, and too long."""
    said = {"plain": ("yes", "no"), "equal": ("yes", "yes"), "empty": ("yes", ""),
            "long": ("a " * 40 + "b", "a " * 40 + "c")}
    pairs = [{"id": name, "domain": "d", "columns": {"prompt": "q", "chosen": a, "rejected": b}}
             for name, (a, b) in said.items()]
    build(tmp_path / "c", pairs, tune=0.0, test=0.0)
    corpus = open_corpus(tmp_path / "c")
    inputs, found = Inputs(corpus, ["chosen", "rejected"], 12), corpus.examples("train")
    told = inputs.survey(found.rows(range(4), inputs.columns))
    assert told == (4, 2, 1, 1)
    assert str(told) == ("of 4 pairs 2 have two equal answers, 1 an answer that says nothing, and 1 are cut "
                         "to the length of a row")
    with pytest.raises(UserError, match="the document 'bare' has no chosen"):
        inputs.survey([{"id": "bare", "prompt": None, "chosen": None, "rejected": None}])


def test_mistakes_are_named(folder: Path, tmp_path: Path) -> None:
    corpus = open_corpus(folder)
    with pytest.raises(UserError, match=r"the field 'lable' cannot become an input \(did you mean 'label'"):
        Inputs(corpus, ["lable"], 8)
    with pytest.raises(UserError, match="no document of the corpus c has a image; it has text, chosen, "
                                        "rejected, label, number"):
        Inputs(corpus, ["image"], 8)
    with pytest.raises(UserError, match="the document 'd/0000' has no label: name the domains"):
        made(folder, "label", ids=("d/0000",))
    build(tmp_path / "bare", texts(4), tokenizer=None)
    with pytest.raises(UserError, match="the corpus bare has no tokenizer, and neither has the model: text "
                                        "cannot"):
        Inputs(Corpus(tmp_path / "bare"), ["text"], 8)
    lent = Inputs(Corpus(tmp_path / "bare"), ["text"], 8, tokenizer=corpus.tokenizer)
    assert lent.encoder is not None
    assert set(NEEDS) == {"text", "chosen", "rejected", "image", "label", "number", "reference",
                          "teacher"}


class Shown(Curate):
    """Images with texts."""

    def apply(self, table: Any, ctx: Context) -> Any:
        from trainwright.corpus.sources import document, union
        from trainwright.corpus.sources import table as source
        rows = [document(id=str(i), text=f"red {i}", domain="d", source="s",
                         columns={"image": picture((i, 0, 0), (9, 5))},
                         keep=media.keeper(ctx)) for i in range(4)]
        return union(table, source("shown", [rows.__iter__]))


def test_an_image_becomes_pixels(tmp_path: Path) -> None:
    build(tmp_path / "c", None, Shown(), tune=0.0, test=0.0)
    how = Pictures(4, (0.5, 0.25, 0.0), (0.5, 0.5, 1.0))
    batch = made(tmp_path / "c", "image", "text", ids=("0", "3"), pictures=how, length=8)
    assert batch["pixel_values"].shape == (2, 3, 4, 4) and batch["pixel_values"].dtype == np.float32
    assert np.allclose(batch["pixel_values"][1, 0], (3 / 255 - 0.5) / 0.5)
    assert np.allclose(batch["pixel_values"][:, 1], -0.5)
    assert set(batch) == {"pixel_values", "input_ids", "attention_mask", "targets", "position_ids"}
    with pytest.raises(UserError, match="images need a size"):
        Inputs(open_corpus(tmp_path / "c"), ["image"], 8)


@pytest.mark.parametrize("size", [(40, 30), (31, 57), (12, 12), (5, 9)])
def test_pixels_are_those_of_transformers(size: tuple[int, int], tmp_path: Path) -> None:
    """The image processor that works with Pillow."""
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).save(file, "PNG")
    how = Pictures(12)
    table = {k: v for k, v in how.table().items() if k != "image_processor_type"}
    wanted = CLIPImageProcessorPil(**table)(Image.fromarray(noise), return_tensors="np")["pixel_values"][0]
    assert np.abs(pixels(file.getvalue(), how) - wanted).max() < 1e-5


def test_bytes_that_are_no_image_are_named() -> None:
    with pytest.raises(UserError, match="an image cannot be read"):
        pixels(b"\x89PNG\r\n\x1a\nbroken", Pictures(4))
