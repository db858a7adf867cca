"""The store: names, hashes, one process at a time, and nothing half there."""
from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from trainwright.core.errors import UserError
from trainwright.core.files import sweep
from trainwright.core.store import Artifact, Store, key_of, stamp
from trainwright.life import run


def add(store: Store, stage: str, key: str, finished: str = "2026-01-01", inputs: Any = None) -> Artifact:
    with store.claim(stage, key) as work:
        out = work / "artifact.tmp"
        out.mkdir()
        (out / "model.safetensors").write_text(stage)
        manifest = {"stage": stage, "hash": key, "finished": finished, "inputs": inputs or {}, "figures": {"loss": 1.5}}
        return store.commit(out, stage, key, manifest)


def test_an_artifact_is_found_by_hash_and_by_name(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    assert store.artifacts() == [] and store.find("base", "1") is None
    old, new = add(store, "base", "1", "2026-01-01"), add(store, "base", "2", "2026-01-02")
    assert store.find("base", "1") == old and store.named("base") == new and store.named("base-1") == old
    assert old.figures == {"loss": 1.5} and old.metrics() == []
    assert not any((store.root / "work").iterdir()), "a committed stage leaves no work folder"
    with pytest.raises(UserError, match=r"no artifact 'bsae' \(did you mean 'base'\?\)"):
        store.named("bsae")


def test_only_one_process_works_on_a_stage(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with store.claim("base", "1") as work:
        assert work.is_dir()
        with pytest.raises(UserError, match="another process is at work on the stage 'base'"), store.claim("base", "1"):
            pass
        with store.claim("base", "2"):
            pass
    with store.claim("base", "1") as work:
        (work / "scratch").touch()
    assert (work / "scratch").exists() and not store.work("base", "2").exists(), "what a stage kept stays, an empty folder goes"


def test_a_stage_that_fails_leaves_nothing(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with pytest.raises(RuntimeError), store.claim("base", "1"):
        raise RuntimeError
    assert list(tmp_path.rglob("*")) == [tmp_path / "work"]


def test_removal_is_at_once_and_minds_who_came_from_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path)
    base = add(store, "base", "1")
    add(store, "adapt", "2", inputs={"model": [{"stage": "base", "hash": "1", "path": ""}]})
    with pytest.raises(UserError, match=r"base-1 is what adapt-2 came from; remove those first, or say --force"):
        store.remove("base")

    def interrupted(path: Path, ignore_errors: bool = False) -> None:
        if not ignore_errors:
            raise KeyboardInterrupt
    monkeypatch.setattr(shutil, "rmtree", interrupted)
    with pytest.raises(KeyboardInterrupt):
        store.remove("base", force=True)
    assert not base.path.exists() and [a.path.name for a in store.artifacts()] == ["adapt-2"], "half removed is not there"


def test_a_store_is_a_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="is a file; a store is a folder"):
        Store(tmp_path / "file")


def test_keys_depend_on_content_not_on_the_order_of_tables() -> None:
    assert key_of({"a": 1, "b": [1, 2]}) == key_of({"b": [1, 2], "a": 1}) and len(key_of(1)) == 12
    assert len({key_of(x) for x in ({"a": 1}, {"a": 2}, {"a": [1]}, {"b": 1}, {"a": "1"})}) == 5


def test_a_stamp_follows_names_sizes_and_times(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x").write_text("1")
    stamps = [stamp(tmp_path / "a")]
    (tmp_path / "a" / "x").write_text("12")
    stamps.append(stamp(tmp_path / "a"))
    os.utime(tmp_path / "a" / "x", (1, 1))
    stamps.append(stamp(tmp_path / "a"))
    (tmp_path / "a" / "x").rename(tmp_path / "a" / "y")
    stamps.append(stamp(tmp_path / "a"))
    assert len(set(stamps)) == 4 and stamp(tmp_path / "a") == stamps[-1]


def test_a_claim_waits_for_nobody(tmp_path: Path) -> None:
    """The lock belongs to the open file, so that another thread of one process is refused too."""
    store, heard = Store(tmp_path), []

    def other() -> None:
        try:
            with store.claim("base", "1"):
                heard.append("in")
        except UserError as error:
            heard.append(str(error))
    with store.claim("base", "1"):
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert len(heard) == 1 and "another process" in heard[0]


def test_what_killed_processes_left_is_swept(tmp_path: Path) -> None:
    """Files are made under ``NAME.PID`` and renamed; a dead process will not do that any more."""
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    alive = os.getppid()
    kept = {f"a.bin.{alive}", "a.bin", "a.json", "b.2024x"}
    for name in {*kept, f"a.bin.{dead.pid}", f"a.json.{dead.pid}", "a.mask.99999999999999999999", f"c.bin.{os.getpid()}"}:
        (tmp_path / name).touch()
    sweep(tmp_path)
    assert {f.name for f in tmp_path.iterdir()} == kept


def test_what_was_begun_goes_even_if_it_is_still_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A table that was given up half way may put down a file after its folder has been emptied."""
    begun, remove, calls = tmp_path / "artifact.tmp", shutil.rmtree, []

    def late(folder: Path, ignore_errors: bool) -> None:
        remove(folder, ignore_errors=ignore_errors)
        calls.append(folder)
        if len(calls) < 3:
            begun.mkdir()
            (begun / "late.parquet").touch()

    begun.mkdir()
    monkeypatch.setattr(shutil, "rmtree", late)
    run._discard(begun)
    assert not begun.exists() and len(calls) == 3
