"""MinHash finds what resembles, and nothing else goes."""
from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.data.frames import frame, told
from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.corpus.shingles import jaccard, shingles, words
from trainwright.data.filter import minhash
from trainwright.data.filter.minhash import CARE, Minhash
from trainwright.data.filter.spoil import _duplicate

WORDS = [f"w{i}" for i in range(2000)]


def kept(rows: Any, folder: Path, **settings: Any) -> set[str]:
    folder.mkdir()
    return set(told(Minhash(**settings).apply(rows, Context(folder=folder))))


def texts(n: int, draw: random.Random) -> list[str]:
    return [" ".join(draw.choices(WORDS, k=draw.randrange(40, 200))) for _ in range(n)]


def planted(draw: random.Random) -> list[dict[str, str]]:
    """Documents, near-duplicates of a third of them, and of another third documents that share their first
    half only."""
    originals = texts(300, draw)
    rows = [{"id": f"{i:03d}", "text": text} for i, text in enumerate(originals)]
    rows += [{"id": f"{i:03d}#near", "text": _duplicate(text, draw).title() + " !"}
             for i, text in enumerate(originals[:100])]
    for i, text in enumerate(originals[100:200], 100):
        half = text.split()[:len(text.split()) // 2]
        rows.append({"id": f"{i:03d}#half", "text": " ".join(half + draw.choices(WORDS, k=len(half)))})
    draw.shuffle(rows)
    return rows


@pytest.mark.slow
def test_planted_duplicates_go_and_nothing_else(tmp_path: Path) -> None:
    """Recall and precision on duplicates with one word in thirty replaced, whose resemblance is about
    0.82."""
    found = {verify: [0, 0, 0] for verify in (True, False)}
    for seed in range(3):
        rows = planted(random.Random(seed))
        sets = {r["id"]: shingles(r["text"], 3) for r in rows}
        wanted = {i for i in sets if i.endswith("#near") and jaccard(sets[i], sets[i[:3]]) >= 0.7}
        assert len(wanted) > 90
        for verify, counts in found.items():
            gone = set(sets) - kept(frame(rows), tmp_path / f"{seed}{verify}", verify=verify)
            for k, n in enumerate((len(gone & wanted), len(wanted), len(gone))):
                counts[k] += n
    hit, wanted_in_all, gone_in_all = found[True]
    assert hit / wanted_in_all >= 0.99, f"recall {hit}/{wanted_in_all}"
    assert hit == gone_in_all, f"precision {hit}/{gone_in_all}"
    hit, wanted_in_all, gone_in_all = found[False]
    assert hit / wanted_in_all >= 0.95 and hit / gone_in_all >= 0.95


@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_hashes_agree_as_often_as_documents_resemble(share: float, tmp_path: Path) -> None:
    """P[min h(a) = min h(b)] = J(a, b): bands of one hash agree that often."""
    draw, hashes = random.Random(1), 512
    common, own = int(300 * share), 300 - int(300 * share)
    start = draw.sample(WORDS, common)
    a, b = (" ".join(start + draw.choices(WORDS, k=own)) for _ in range(2))
    context = Context(folder=tmp_path)
    found = minhash.Signatures.of(frame([{"text": a}, {"text": b}]), context, 2, hashes, 1, "", "test")
    bands = [np.fromfile(found.folder / f"{band:03d}.bin", minhash.BAND) for band in range(hashes)]
    true = jaccard(shingles(a, 2), shingles(b, 2))
    measured = np.mean([len(set(band["key"])) == 1 for band in bands])
    assert abs(measured - true) < 4 * np.sqrt(true * (1 - true) / hashes)


def test_the_one_that_stays(tmp_path: Path) -> None:
    """The first by id, whatever the order of the rows; or the one with the highest score, a missing one
    being the lowest."""
    text = " ".join(WORDS[:60])
    rows = [{"id": i, "text": text + (" extra" if i == "c" else "")}
            for i in "bcad"] + [{"id": "e", "text": "another text"}]
    assert kept(frame(rows), tmp_path / "1") == kept(frame(rows[::-1]), tmp_path / "2") == {"a", "e"}
    scored = frame(rows, score=[1.0, 3.0, None, 3.0, 0.0])
    assert kept(scored, tmp_path / "3", prefer="score") == {"c", "e"}


def test_clusters_hang_together_through_others() -> None:
    pairs = np.array([[0, 3], [3, 5], [1, 2]])
    cluster = minhash.clusters(pairs, 6)
    assert cluster[0] == cluster[3] == cluster[5] != cluster[1] == cluster[2] != cluster[4]
    assert [part.tolist() for part in minhash.others(cluster)] == [[2, 3, 5], [1, 0, 0]]


def test_bands_follow_from_the_threshold() -> None:
    """The probability of being a candidate rises around the threshold; where candidates are verified it
    rises before it."""
    def met(j: float, care: float) -> float:
        bands, per_band = minhash.banding(0.7, 128, care)
        assert bands * per_band <= 128
        return 1 - (1 - j ** per_band) ** bands
    assert met(0.5, 0.5) < 0.2 and met(0.85, 0.5) > 0.9
    assert met(0.7, CARE) > 0.95 > met(0.7, 0.5)


def test_words_of_all_scripts() -> None:
    assert words("Don't STOP, naïve_x 3.5") == ["don", "t", "stop", "naïve_x", "3", "5"]
    assert words("我们去 ok") == ["我", "们", "去", "ok"]
    assert words("हिन्दी में") == ["हिन्दी", "में"], "a mark does not end a word"
    assert words("e\u0301te\u0301") == words("été")


def test_other_scripts_and_empty_documents(tmp_path: Path) -> None:
    chinese = "".join(chr(0x4E00 + random.Random(0).randrange(2000) * (i % 7 + 1) % 5000) for i in range(120))
    rows = [{"id": "a", "text": chinese}, {"id": "b", "text": chinese[:60] + "新" + chinese[61:]},
            {"id": "c", "text": "!!! ..."},
            {"id": "d", "text": ""}, {"id": "e", "text": "?"}, {"id": "f", "text": "one"},
            {"id": "g", "text": "One."},
            {"id": "h", "text": "two"}]
    assert kept(frame(rows), tmp_path / "x") == {"a", "c", "d", "e", "f", "h"}


def test_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = frame([{"text": text} for text in texts(30, random.Random(0))])
    first = set(told(Minhash().apply(rows, Context(folder=tmp_path))))
    monkeypatch.setattr(minhash, "_write", None)
    assert set(told(Minhash().apply(rows, Context(folder=tmp_path)))) == first


def test_mistakes_are_told(tmp_path: Path) -> None:
    rows = frame([{"text": "a b c"}, {"text": "d e f"}], score=[1.0, float("nan")], name=["x", "y"])
    for n, (settings, said) in enumerate([({"prefer": "scores"}, "reads the column 'scores'"),
                                          ({"prefer": "score"}, "holds NaN"),
                                          ({"prefer": "name"}, "not numbers")]):
        with pytest.raises(UserError, match=said):
            kept(rows, tmp_path / str(n), **settings)
    with pytest.raises(UserError, match="no document came in"):
        kept(rows.where(rows["id"] == "none"), tmp_path / "none")
    with pytest.raises(UserError, match="1 documents share an id"):
        kept(frame([{"id": "a", "text": "x"}, {"id": "a", "text": "y"}]), tmp_path / "twins")
    with pytest.raises(ValueError, match="threshold must be above 0"):
        Minhash(threshold=0.0)


def test_what_was_found_is_told(tmp_path: Path) -> None:
    ctx = Context(folder=tmp_path)
    text = " ".join(WORDS[:60])
    Minhash().apply(frame([{"text": text}, {"text": text}, {"text": "other words are here"}]), ctx)
    assert ctx.notes["minhash/dropped"] == [(1, 1.0)]
    assert ctx.texts["minhash"].startswith("1 of 3 documents dropped")
