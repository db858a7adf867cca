"""Words, and where they stand."""
from __future__ import annotations

import unicodedata

import pytest

from trainwright.corpus.shingles import places, words


@pytest.mark.parametrize("text", ["One, two-THREE 4!", "日本 and ไทย", "naïve Zoë", "a\u0301b c", "", " . "])
def test_places_are_those_of_the_words(text: str) -> None:
    whole = unicodedata.normalize("NFC", text)
    assert [whole[a:b].lower() for a, b in places(whole)] == words(whole)
