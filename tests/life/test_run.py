"""A run leaves whole artifacts, or nothing: what failed goes, what is damaged is found before it is used."""
from __future__ import annotations

import os
from pathlib import Path

import pytest

from trainwright.core import files
from trainwright.core.errors import UserError
from trainwright.core.recipe import load
from trainwright.life.run import run
from trainwright.storage.store import Store

FAILS = '''"""Fails after it has worked."""
from trainwright.core.errors import UserError
from trainwright.core.method import Curate


class Fails(Curate):
    """Works in its scratch, then fails."""

    paid: bool = False
    """Keep what it has made."""

    def apply(self, documents, ctx):
        (ctx.folder / "answers").write_text("dear")
        (ctx.folder / "table").mkdir()
        (ctx.folder / "table" / "rows").write_text("cheap")
        if self.paid:
            ctx.kept.append(ctx.folder / "answers")
        raise UserError("it failed.")
'''
READS = '"texts/code"] }]'


def shortened(life: Path, stages: int) -> Path:
    """The tiny life up to some stage."""
    parts = life.read_text().split("[[stage]]")
    life.write_text("[[stage]]".join(parts[: stages + 1]))
    return life


def left(store: Path) -> list[str]:
    """Files in the work folder."""
    return [f.name for f in (store / "work").rglob("*") if f.is_file()]


@pytest.mark.parametrize("paid", [False, True])
def test_a_stage_that_fails_leaves_nothing_but_what_was_paid_for(paid: bool, life: Path) -> None:
    (life.parent / "fails.py").write_text(FAILS)
    text = shortened(life, 1).read_text()
    more = f'"texts/code"] }}, {{ use = "./fails.py", paid = {str(paid).lower()} }}]'
    life.write_text(text.replace(READS, more))
    store = Store(life.parent / "store")
    with pytest.raises(UserError, match="it failed"):
        run(load(life), store)
    assert sorted(left(store.root)) == (["answers", "lock"] if paid else []) and store.artifacts() == []
    assert paid or not any((store.root / "work").iterdir())


@pytest.mark.slow
def test_training_that_fails_keeps_its_checkpoints(life: Path) -> None:
    """Its sentence names the last good one."""
    spoil = '''"""Spoils the weights in the fifth step."""
from trainwright.core.method import Update


class Spoil(Update):
    """Spoils."""

    def update(self, updates, params, state, ctx):
        return {n: u * (float("nan") if ctx.step == 4 else 1) for n, u in updates.items()}
'''
    (life.parent / "spoil.py").write_text(spoil)
    text = shortened(life, 2).read_text()
    life.write_text(text.replace('{ use = "clip_gradients" }', '{ use = "./spoil.py" }'))
    store = Store(life.parent / "store")
    with pytest.raises(UserError, match=r"the last good checkpoint is .*step-0000000\d"):
        run(load(life), store)
    assert list((store.root / "work").glob("base-*/checkpoints/step-00000004/state.json"))
    assert not list(store.root.rglob("artifact.tmp"))


def flip(file: Path) -> None:
    """One bit of a file, its size and the time that it tells left as they are."""
    found, data = file.stat(), bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    os.utime(file, ns=(found.st_atime_ns, found.st_mtime_ns))
    files._INTACT.clear()                                       # as in another process


@pytest.mark.slow
@pytest.mark.parametrize("what", ["corpus-*/tokens/00000.bin", "corpus-*/tokens/index.parquet",
                                  "base-*/model.safetensors", "base-*/tokenizer.json"])
def test_a_flipped_bit_is_found_before_it_is_used(what: str, life: Path) -> None:
    store = Store(life.parent / "store")
    shortened(life, 3)
    made = run(load(life), store)
    right = (made["adapt"].path / "model.safetensors").read_bytes()
    store.remove("adapt")
    (file,) = store.root.glob(what)
    flip(file)
    name = file.relative_to(store.root).parts[0]
    with pytest.raises(UserError, match=rf"{name}: .*{file.name} is not as written; .*store rm {name}"):
        run(load(life), store)
    assert not left(store.root)
    store.remove(name, force=True)
    assert (run(load(life), store)["adapt"].path / "model.safetensors").read_bytes() == right


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="counts descriptors in /proc")
def test_many_runs_in_one_process_need_few_descriptors(life: Path) -> None:
    shortened(life, 2)
    opened = []
    for seed in range(20):
        run(load(life, {"seed": seed, "base.steps": 1}), Store(life.parent / f"store{seed}"))
        opened.append(len(os.listdir("/proc/self/fd")))
    assert max(opened) < 200 and opened[-1] - opened[2] <= 64, opened
