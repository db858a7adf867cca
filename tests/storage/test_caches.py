"""Entries of caches are vouched for by their checksums."""
from __future__ import annotations

from pathlib import Path

from trainwright.storage import caches


def test_an_entry_of_a_cache_is_vouched_for(tmp_path: Path) -> None:
    parts = [tmp_path / f"abc.{ending}" for ending in ("bin", "json")]
    sums = tmp_path / "abc.sums"
    assert not caches.vouched(sums)
    for part in parts:
        part.write_text(part.name)
    caches.vouch(*parts)
    assert caches.vouched(sums)
    for other in ('{"../x": "0"}', "[]", "{", "7", '{"abc.bin": 7}', '{"none": "0"}'):
        right = sums.read_text()
        sums.write_text(other)
        assert not caches.vouched(sums)
        sums.write_text(right)
    parts[0].write_text("abc.bim")
    assert not caches.vouched(sums)
