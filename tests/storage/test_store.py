"""The store: names, hashes, one process at a time, and nothing half there."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from trainwright.core import files
from trainwright.core.errors import UserError
from trainwright.life import run
from trainwright.storage import caches
from trainwright.storage import store as store_module
from trainwright.storage.artifact import Artifact
from trainwright.storage.caches import sweep
from trainwright.storage.store import Store, key_of, stamp


def add(store: Store, stage: str, key: str, finished: str = "2026-01-01", inputs: Any = None) -> Artifact:
    with store.claim(stage, key) as work:
        out = work / "artifact.tmp"
        out.mkdir()
        (out / "model.safetensors").write_text(f"weights of {stage}")
        (out / "tokens").mkdir()
        (out / "tokens" / "00000.bin").write_text("tokens")
        manifest = {
            "stage": stage,
            "hash": key,
            "finished": finished,
            "inputs": inputs or {},
            "figures": {"loss": 1.5},
        }
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
        with (
            pytest.raises(UserError, match="another process is at work on the stage 'base'"),
            store.claim("base", "1"),
        ):
            pass
        with store.claim("base", "2"):
            pass
    with store.claim("base", "1") as work:
        (work / "scratch").touch()
    assert (work / "scratch").exists() and not store.work("base", "2").exists(), (
        "what a stage kept stays, an empty folder goes"
    )


def test_a_stage_that_fails_leaves_nothing(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with pytest.raises(RuntimeError), store.claim("base", "1"):
        raise RuntimeError
    assert list(tmp_path.rglob("*")) == [tmp_path / "work"]


def test_removal_is_at_once_and_minds_who_came_from_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path)
    base = add(store, "base", "1")
    add(store, "adapt", "2", inputs={"model": [{"stage": "base", "hash": "1", "path": ""}]})
    with pytest.raises(
        UserError, match=r"base-1 is what adapt-2 came from; remove those first, or say --force"
    ):
        store.remove("base")

    def interrupted(path: Path, ignore_errors: bool = False) -> None:
        if not ignore_errors:
            raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "rmtree", interrupted)
    with pytest.raises(KeyboardInterrupt):
        store.remove("base", force=True)
    assert not base.path.exists() and [a.path.name for a in store.artifacts()] == ["adapt-2"], (
        "half removed is not there"
    )


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
    for name in {
        *kept,
        f"a.bin.{dead.pid}",
        f"a.json.{dead.pid}",
        "a.mask.99999999999999999999",
        f"c.bin.{os.getpid()}",
    }:
        (tmp_path / name).touch()
    sweep(tmp_path)
    assert {f.name for f in tmp_path.iterdir()} == kept


def test_what_was_begun_goes_even_if_it_is_still_written_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
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


# ---- a closed world -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["../outside", "..", ".", "", "base-1/../../outside", "base\0", "{absolute}"]
)
def test_names_that_leave_the_store_are_refused(name: str, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "manifest.json").write_text(
        json.dumps({"stage": "x", "hash": "1", "inputs": {}, "figures": {}})
    )
    store = Store(tmp_path / "store")
    add(store, "base", "1")
    for act in (store.named, partial(store.remove, force=True), lambda n: list(store.verify(n or "."))):
        with pytest.raises(
            UserError, match="is no name of an artifact: take one that `trainwright store ls` shows"
        ):
            act(name.format(absolute=outside))
    assert (outside / "manifest.json").is_file() and store.named("base")


@pytest.mark.parametrize("link", ["work", "work/base-1", "work/base-1/lock"])
def test_nothing_is_written_through_a_link(link: str, tmp_path: Path) -> None:
    store, outside = Store(tmp_path / "store"), tmp_path / "outside"
    (store.root / link).parent.mkdir(parents=True)
    if link.endswith("lock"):
        outside.write_text("mine")
    else:
        outside.mkdir()
    (store.root / link).symlink_to(outside)
    with (
        pytest.raises(UserError, match=f"{link} is a link: a store writes within itself only"),
        store.claim("base", "1"),
    ):
        pass
    assert outside.read_text() == "mine" if outside.is_file() else not list(outside.iterdir())


def test_of_a_link_to_an_artifact_the_link_is_removed(tmp_path: Path) -> None:
    elsewhere = add(Store(tmp_path / "elsewhere"), "base", "1")
    store = Store(tmp_path / "store")
    store.root.mkdir()
    (store.root / "base-1").symlink_to(elsewhere.path)
    assert store.named("base").manifest["hash"] == "1", "reading follows it"
    store.remove("base")
    assert (
        store.artifacts() == []
        and elsewhere.manifest["hash"] == "1"
        and (elsewhere.path / "model.safetensors").is_file()
    )


def test_a_folder_that_the_store_has_not_made_stays(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for name in ("base-1", "site"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "mine.txt").write_text("mine")
    (tmp_path / "site" / "manifest.json").write_text(
        '{"name": "a page", "icons": []}'
    )  # as web sites have one
    with (
        pytest.raises(UserError, match="base-1 is in the way: the store has not made it"),
        store.claim("base", "1"),
    ):
        pass
    with pytest.raises(UserError, match="site is no artifact that a store has made; remove it yourself"):
        store.remove("site", force=True)
    assert [f.read_text() for f in tmp_path.glob("*/mine.txt")] == ["mine", "mine"]


def test_a_store_below_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="file is a file; a store is a folder"):
        Store(tmp_path / "file" / "store")


# ---- damage ----------------------------------------------------------------------------------------------


def huge(file: Path) -> None:
    file.touch()
    os.truncate(file, 2**40)


MANIFESTS: dict[str, Callable[[Path], object]] = {
    "empty": lambda f: f.write_text(""),
    "half": lambda f: f.write_text('{"stage": "base", "ha'),
    "list": lambda f: f.write_text("[]"),
    "number": lambda f: f.write_text("7"),
    "bytes": lambda f: f.write_bytes(b"\xff\xfe\0"),
    "deep": lambda f: f.write_text("[" * 100_000),
    "digits": lambda f: f.write_text('{"seed": ' + "9" * 5000 + "}"),
    "nothing": lambda f: f.write_text("{}"),
    "pipe": os.mkfifo,
    "folder": lambda f: f.mkdir(),
    "huge": huge,
    "dangling": lambda f: f.symlink_to("nowhere"),
    "loop": lambda f: f.symlink_to(f.name),
    "device": lambda f: f.symlink_to("/dev/zero"),
}
WRONG = {
    "stage": 7,
    "hash": ["a"],
    "finished": 7,
    "kind": None,
    "inputs": {"data": [7]},
    "figures": [],
    "settings": [],
    "seconds": "long",
    "texts": 7,
}
MANIFESTS |= {
    f"wrong {key}": partial(
        lambda key, f: f.write_text(
            json.dumps(
                {
                    "stage": "old",
                    "hash": "0" * 12,
                    "finished": "2026",
                    "inputs": {},
                    "figures": {},
                    key: WRONG[key],
                }
            )
        ),
        key,
    )
    for key in WRONG
}


@pytest.mark.parametrize("how", MANIFESTS)
def test_one_damaged_manifest_is_named_and_skipped(
    how: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store, name = Store(tmp_path), f"old-{'0' * 12}"
    add(store, "base", "1")
    damaged = add(store, "old", "0" * 12).path / "manifest.json"
    damaged.unlink()
    MANIFESTS[how](damaged)
    assert [a.path.name for a in store.artifacts()] == ["base-1"] == [a.path.name for a in store.artifacts()]
    assert capsys.readouterr().err.count(f"{damaged}") == 1 and list(store.damaged) == [name]
    assert store.named("base").figures == {"loss": 1.5}
    for act in (partial(store.find, "old", "0" * 12), partial(store.named, name)):
        with pytest.raises(
            UserError, match=rf"{name}/manifest.json .*; make it again: `trainwright store rm {name} --store"
        ):
            act()
    assert dict(store.verify())[name] and not dict(store.verify())["base-1"]
    assert store.remove(name) == tmp_path / name and not os.path.lexists(tmp_path / name)


def test_settings_that_name_no_methods_have_none(tmp_path: Path) -> None:
    made = add(Store(tmp_path), "base", "1")
    file = made.path / "manifest.json"
    told = json.loads(file.read_text())
    file.write_text(json.dumps(told | {"settings": {"steps": 3}}))
    assert Store(tmp_path).named("base").manifest["settings"] == {"methods": [], "steps": 3}


def test_an_artifact_under_another_name_is_none_of_that_name(tmp_path: Path) -> None:
    store = Store(tmp_path)
    add(store, "base", "1").path.rename(tmp_path / "base-2")
    with pytest.raises(UserError, match="is that of another artifact"):
        store.find("base", "2")


def test_order_follows_what_was_made_from_what(tmp_path: Path) -> None:
    """With the clock set back between the two, the artifact that was made of the other is the newer one."""
    store = Store(tmp_path)
    add(store, "a", "1", "2026-05-01")
    add(store, "a", "2", "2026-01-01", {"model": [{"stage": "a", "hash": "1"}]})
    add(store, "a", "3", "2025-01-01", {"state": [{"stage": "a@5", "hash": "x", "artifact": "2"}]})
    add(store, "b", "4", "2026-06-01")
    assert [a.path.name for a in store.artifacts()] == ["a-1", "a-2", "a-3", "b-4"] and store.named(
        "a"
    ).path.name == "a-3"
    assert [a.path.name for a in store.users("a-2")] == ["a-3"], "a snapshot is part of its artifact"


def test_artifacts_that_name_each_other_have_an_order_too(tmp_path: Path) -> None:
    store = Store(tmp_path)
    add(store, "a", "1", inputs={"model": [{"stage": "a", "hash": "2"}]})
    add(store, "a", "2", inputs={"model": [{"stage": "a", "hash": "1"}]})
    assert len(store.artifacts()) == 2


HARM = {
    "model.safetensors": ("flip", "cut", "remove", "link", "pipe"),
    "manifest.json": ("flip", "cut", "link", "pipe"),
    "checksums.json": ("flip", "cut", "remove", "pipe"),
    "tokens/00000.bin": ("flip", "cut", "remove", "link", "pipe"),
}


@pytest.mark.parametrize(("file", "how"), [(file, how) for file, ways in HARM.items() for how in ways])
def test_a_file_that_is_not_as_it_was_written_is_found(file: str, how: str, tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    artifact = add(store, "base", "1")
    assert store.opened(artifact) == artifact.path and list(store.verify()) == [("base-1", "")]
    victim, data = artifact.path / file, (artifact.path / file).read_bytes()
    victim.unlink()
    match how:
        case "flip":
            victim.write_bytes(data[:-3] + bytes([data[-3] ^ 1]) + data[-2:])
        case "cut":
            victim.write_bytes(data[:-3])
        case "link":
            (tmp_path / "same").write_bytes(data)
            victim.symlink_to(tmp_path / "same")
        case "pipe":
            os.mkfifo(victim)
    again = rf"base-1: .*{file}|base-1/{file}" if file != "checksums.json" else "base-1: .* not as written"
    remedy = "; make it again: `trainwright store rm base-1 --store .*`, then run its recipe$"
    with pytest.raises(UserError, match=rf"({again}).*{remedy}"):
        store.opened(store.named("base-1"))
    if file != "manifest.json":
        assert [bool(problem) for _, problem in store.verify("base-1")] == [True]


def test_a_file_more_is_found_and_hidden_ones_are_not_looked_at(tmp_path: Path) -> None:
    store = Store(tmp_path)
    artifact = add(store, "base", "1")
    (artifact.path / ".DS_Store").write_text("the file system's own")
    assert store.opened(artifact)
    (artifact.path / "adapter").mkdir()
    (artifact.path / "adapter" / "surgery.json").write_text("{}")
    with pytest.raises(UserError, match=r"adapter/surgery.json is not as written"):
        store.opened(artifact)


def test_a_folder_is_hashed_once_a_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: list[Path] = []
    right = files.checksum
    monkeypatch.setattr(files, "checksum", lambda file: hashed.append(file) or right(file))
    artifact = add(Store(tmp_path), "base", "1")
    made = len(hashed)
    assert Store(tmp_path).opened(artifact) and len(hashed) == made, (
        "what was made here was hashed when it was made"
    )
    files._INTACT.clear()
    assert Store(tmp_path).opened(artifact) and Store(tmp_path).opened(artifact) and len(hashed) == 2 * made


def test_caches_are_verified_too(tmp_path: Path) -> None:
    store = Store(tmp_path)
    entry, package = store.folder("cache", "tokens") / "abc.bin", store.folder("cache", "some-package")
    entry.write_bytes(b"tokens")
    caches.vouch(entry)
    (package / "config.json").write_text("{}")
    files.seal(package)
    assert list(store.verify()) == []
    entry.write_bytes(b"tokenz")
    (package / "config.json").write_text("[]")
    told = dict(store.verify())
    assert (
        "abc is not as it was written; it is made again when it is next needed"
        in told["cache/tokens/abc.sums"]
    )
    assert "config.json is not as it was written; remove" in told["cache/some-package/checksums.json"]


def test_a_folder_of_too_many_files_is_not_looked_through(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"x")
    before = stamp(tmp_path)
    assert before == stamp(tmp_path) != stamp(tmp_path / "model.safetensors")
    monkeypatch.setattr(store_module, "MOST_FILES", 0)
    with pytest.raises(UserError, match="holds more than 0 files: it is no checkpoint and no corpus"):
        stamp(tmp_path)
    with pytest.raises(UserError, match="cannot be read: No such file or directory"):
        stamp(tmp_path / "none")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["~nobody-of-this-name", "s3:x", "file:x", "C:\\x", "a*b", "[a]", "a%20b"])
def test_whatever_a_store_is_called_its_files_lie_in_it(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Arrow takes ``~`` for a home and ``s3:`` for an address, at the begin of a path."""
    monkeypatch.chdir(tmp_path)
    file = Store(Path(name)).folder("work") / "rows.parquet"
    pq.write_table(pa.table({"id": [1]}), file)
    assert (tmp_path / name / "work" / "rows.parquet").is_file()
    assert pq.read_table(file).to_pylist() == [{"id": 1}]


def test_a_store_may_lie_at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert Store(Path("~")).root == tmp_path and Store(Path("~/store")).root == tmp_path / "store"
    assert Store(Path("store")).root == Path("store"), "as it was given, where nobody mistakes it"
