"""How often the right caption is found for a picture, and the right picture for a caption.

As "Learning Transferable Visual Models From Natural Language Supervision" (arXiv 2103.00020) measures on
Flickr30k and MS-COCO. Of N held-out pairs with C different captions, by cosine similarity,

    recall/image_to_text@K = share of pictures whose caption is among the K most similar captions
    recall/text_to_image@K = share of captions of which a picture is among the K most similar pictures
    chance/…@K             = what K drawn at random would reach

A caption that several pictures share counts once, and each of these pictures is right for it; a tie counts
against the model. With n pictures the standard error of a recall r is sqrt(r (1 - r) / n). Shows a contact
sheet of captions and the pictures found for them.

Not comparable between sets of another size: more candidates are harder.

Errors: a corpus without pictures, or fewer than two captions; a model of another family.
"""
from __future__ import annotations

import io
import math
import textwrap
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.core.method import Evaluator
from trainwright.corpus.columns import TEXT
from trainwright.evaluate._pairs import Held, held, image_embeddings, text_embeddings

SIDE, GAP, WORDS = 96, 8, 230
"""Pixels of a picture on the contact sheet, between two, and for a caption."""
FOUND = 5
"""Pictures that it has of each caption."""


class Retrieval(Evaluator):
    """Measures recall of captions given pictures, and of pictures given captions, on held-out pairs."""

    at: tuple[int, ...] = (1, 5, 10)
    """How many candidates are looked at, each a number of its own."""
    split: Literal["train", "tune", "test"] = "test"
    """Which documents of the corpus."""
    domains: tuple[str, ...] = ()
    """Domains to take; all of them by default."""
    data: str = ""
    """Which corpus, where ``from.data`` names several."""
    most: int = 1000
    """Most pairs, drawn by their ids."""
    batch_size: int = 64
    """Pictures or captions of a forward pass."""
    show: int = 6
    """Captions on the contact sheet; 0: none is drawn."""
    families: ClassVar[tuple[str, ...]] = ("image_text",)
    makes: ClassVar[tuple[str, ...]] = ("recall/*", "chance/*")
    example: ClassVar[dict[str, Any]] = {"at": (1, 5), "show": 1}
    beside: ClassVar[tuple[dict[str, Any], ...]] = (
        {"use": "examples", "fields": ["image", "text"], "length": 24}, {"use": "clip"})

    def __post_init__(self) -> None:
        if not self.at or min(self.at) < 1:
            raise ValueError(f"at must be numbers from 1 on, not {list(self.at)}")
        if self.most < 2 or self.batch_size < 1 or self.show < 0:
            raise ValueError("most must be 2 or more, batch_size positive and show not negative, not "
                             f"{self.most}, {self.batch_size} and {self.show}")

    def measure(self, model: nn.Module, ctx: Context) -> dict[str, float]:
        pairs = held(ctx, self.data, self.split, self.domains, self.most)
        pairs = pairs._replace(rows=[row for row in pairs.rows if (row[TEXT] or "").strip()])
        captions = list(dict.fromkeys(row[TEXT] for row in pairs.rows))
        if len(captions) < 2:
            raise UserError(f"retrieval: the {self.split!r} documents have {len(captions)} captions of "
                            "pictures, and it takes two.")
        own = torch.tensor([captions.index(row[TEXT]) for row in pairs.rows])
        images = image_embeddings(model, pairs, self.batch_size, ctx)
        texts = text_embeddings(model, captions, pairs, self.batch_size, ctx)
        alike = (images @ texts.T).cpu()
        ranks = {"image_to_text": caption_ranks(alike, own), "text_to_image": picture_ranks(alike, own)}
        if self.show:
            self.draw(alike, own, captions, pairs, ctx)
        chance = {"image_to_text": [1] * len(own), "text_to_image": torch.bincount(own).tolist()}
        size = {"image_to_text": len(captions), "text_to_image": len(own)}
        out: dict[str, float] = {}
        for way, found in ranks.items():
            for k in self.at:
                out[f"recall/{way}@{k}"] = float((found < k).double().mean())
                out[f"chance/{way}@{k}"] = sum(drawn(size[way], m, k) for m in chance[way]) / len(chance[way])
        return out

    def draw(self, alike: Tensor, own: Tensor, captions: list[str], pairs: Held, ctx: Context) -> None:
        """The pictures found for some captions, the right ones in a frame."""
        many, rows = min(FOUND, len(own)), []
        for c in range(min(self.show, len(captions))):
            found = alike[:, c].topk(many).indices.tolist()
            rows.append((captions[c], [(i, int(own[i]) == c) for i in found]))
        seen = [caption for caption, found in rows if any(right for _, right in found)]
        words = (f"For {len(rows)} captions the {many} most similar of {len(own)} pictures, right ones in a "
                 f"frame. One is right for {len(seen)} of them{': ' if seen else ''}{'; '.join(seen)}")
        ctx.picture("retrieval", sheet(rows, pairs), words)


def caption_ranks(alike: Tensor, own: Tensor) -> Tensor:
    """How many captions are at least as similar to each picture as its own, but for that.

    Args:
        alike: [pictures, captions].
        own: [pictures], the place of each picture's caption.
    """
    return (alike >= alike.gather(1, own[:, None])).sum(1) - 1


def picture_ranks(alike: Tensor, own: Tensor) -> Tensor:
    """How many pictures of other captions are at least as similar to each caption as the best of its own."""
    mine = own[:, None] == torch.arange(alike.shape[1])
    best = alike.masked_fill(~mine, -math.inf).amax(0)
    return ((alike >= best) & ~mine).sum(0)


def drawn(candidates: int, right: int, k: int) -> float:
    """The chance that one of the right ones is among ``k`` drawn without replacement."""
    k = min(k, candidates)
    return 1 - math.comb(candidates - right, k) / math.comb(candidates, k)


def sheet(rows: list[tuple[str, list[tuple[int, bool]]]], pairs: Held) -> bytes:
    """A PNG with a caption and the pictures found for it in each row; those that are right have a frame."""
    from PIL import Image, ImageDraw, ImageFont
    step = SIDE + GAP
    out = Image.new("RGB", (WORDS + FOUND * step + GAP, len(rows) * step + GAP), "white")
    pen, font = ImageDraw.Draw(out), ImageFont.load_default(15)
    for r, (caption, found) in enumerate(rows):
        top = GAP + r * step
        pen.multiline_text((GAP, top + 4), "\n".join(textwrap.wrap(caption, 28)[:5]), fill="black", font=font)
        for c, (number, right) in enumerate(found):
            with Image.open(pairs.file(number)) as opened:
                shown = opened.convert("RGB")
            shown.thumbnail((SIDE - 8, SIDE - 8))
            left = WORDS + c * step
            out.paste(shown, (left + (SIDE - shown.width) // 2, top + (SIDE - shown.height) // 2))
            if right:
                pen.rectangle((left, top, left + SIDE - 1, top + SIDE - 1), outline="#1a7f37", width=3)
    made = io.BytesIO()
    out.save(made, "PNG", optimize=True)
    return made.getvalue()
