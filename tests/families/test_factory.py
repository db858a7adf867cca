"""A function of the user's builds the model: called where the recipe names it, never
because a folder does."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from trainwright import families
from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.core.recipe import load
from trainwright.corpus import bpe
from trainwright.life.jobs import jobs
from trainwright.life.run import run
from trainwright.lm.losses import token_losses
from trainwright.storage.store import Store

NET = """import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, vocab_size, width, tied):
        super().__init__()
        self.embed = nn.Embedding(vocab_size, width)
        self.mix = nn.GRU(width, width, batch_first=True)
        self.head = nn.Linear(width, vocab_size, bias=False)
        if tied:
            self.head.weight = self.embed.weight

    def forward(self, input_ids):
        return self.head(self.mix(self.embed(input_ids))[0])

def build(vocab_size, width=8, tied=False):
    return Net(vocab_size, width, tied)

def wrong(width=8):
    return width

def broken(width=8):
    raise ValueError("no such width")
"""
TABLE: dict[str, Any] = {"factory": "./net.py:build", "vocab_size": 40}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "net.py").write_text(NET)
    return tmp_path


def config(root: Path, **changes: Any) -> Any:
    return families.from_table(TABLE | changes, None, "here", root)


def test_weights_depend_on_the_seed_alone(root: Path) -> None:
    one, two, other = (families.create(config(root), seed, "here") for seed in (0, 0, 1))
    assert torch.equal(one.embed.weight, two.embed.weight) and not torch.equal(
        one.embed.weight, other.embed.weight
    )
    assert all(p.is_meta for p in families.skeleton(config(root), "here").parameters())
    assert families.family_of(one).name == "factory" and families.vocabulary_of(one) == 40


def test_the_vocabulary_is_the_tokenizers(root: Path) -> None:
    tokenizer = bpe.train(["the sea the ship the rain"] * 3, 300)
    table = {"factory": "./net.py:build"}
    assert families.from_table(table, tokenizer, "here", root).settings == {"vocab_size": len(tokenizer)}
    assert families.from_table(table, None, "here", root, vocabulary=77).settings == {"vocab_size": 77}
    with pytest.raises(UserError, match=r"^here: \./net\.py:build needs model\.vocab_size\.$"):
        families.skeleton(families.from_table(table, None, "here", root), "here")


@pytest.mark.parametrize("tied", [False, True])
def test_out_and_in_again(root: Path, tied: bool) -> None:
    made = config(root, tied=tied)
    model, out = families.create(made, 3, "here"), root / "artifact"
    families.save(copy.deepcopy(model), out, None)
    assert json.loads((out / "factory.json").read_text()) == {
        "factory": "./net.py:build",
        "settings": {"vocab_size": 40, "tied": tied},
    }
    assert ("head.weight" in load_file(out / "model.safetensors")) + (
        "embed.weight" in load_file(out / "model.safetensors")
    ) == 2 - tied
    loaded = families.load(out, "here", made)
    assert all(torch.equal(t, loaded.state_dict()[n]) for n, t in model.state_dict().items())
    assert (loaded.head.weight is loaded.embed.weight) == tied


def test_a_folder_alone_runs_nothing(root: Path) -> None:
    families.save(families.create(config(root), 0, "here"), root / "artifact", None)
    ran = root / "ran"
    (root / "net.py").write_text(f"open({str(ran)!r}, 'w').close()\n" + NET)
    with pytest.raises(
        UserError, match=r"was built by \./net\.py:build, which only the recipe that names it may run"
    ):
        families.load(root / "artifact", "here")
    with pytest.raises(UserError, match="a folder alone runs nothing"):
        families.load_config(root / "artifact", "here")
    assert not ran.exists()


def test_other_settings_or_other_code_do_not_fit(root: Path) -> None:
    families.save(families.create(config(root), 0, "here"), root / "artifact", None)
    with pytest.raises(UserError, match=r"and the recipe says \./net\.py:build with .*'width': 9"):
        families.load(root / "artifact", "here", config(root, width=9))
    (root / "net.py").write_text(NET.replace("self.mix", "self.stir"))
    with pytest.raises(UserError, match=r"are not those of what \./net\.py:build builds now: .*mix"):
        families.load(root / "artifact", "here", config(root))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"factory": "net"}, 'model.factory must be a file and a function in it, such as "./net.py:build"'),
        ({"factory": "./other.py:build"}, "there is no file"),
        ({"factory": "./net.py:biuld"}, "no function 'biuld' (did you mean 'build'?)"),
        ({"widht": 9}, "model.widht is no argument of ./net.py:build (did you mean 'width'?)"),
    ],
)
def test_a_table_that_is_wrong(root: Path, change: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError) as told:
        config(root, **change)
    assert str(told.value).startswith("here: ") and words in str(told.value)


def test_a_function_that_fails_is_a_sentence_with_its_line(root: Path) -> None:
    line = NET.splitlines().index('    raise ValueError("no such width")') + 1
    broken = families.from_table({"factory": "./net.py:broken"}, None, "here", root)
    with pytest.raises(
        UserError, match=rf"^here: \./net\.py:broken, line {line}: ValueError: no such width\.$"
    ):
        families.create(broken, 0, "here")
    wrong = families.from_table({"factory": "./net.py:wrong"}, None, "here", root)
    with pytest.raises(UserError, match="must return a torch module, not a int"):
        families.create(wrong, 0, "here")


def test_such_a_model_is_scored_as_any_causal_one(root: Path) -> None:
    model = families.create(config(root), 0, "here")
    ids = torch.arange(20).reshape(2, 10)
    targets = torch.cat([ids[:, 1:], torch.full((2, 1), -100)], 1)
    batch = {"input_ids": ids, "targets": targets, "position_ids": torch.arange(10).expand(2, 10)}
    losses = token_losses(model, batch, Context())
    wanted = nn.functional.cross_entropy(model(ids).flatten(0, 1), targets.flatten(), reduction="none").view(
        2, 10
    )
    assert torch.equal(losses, wanted) and (losses[:, -1] == 0).all() and losses.sum() > 0


@pytest.mark.slow
def test_a_whole_life_of_such_a_model(life: Path) -> None:
    """Trained, trained further, merged and measured: later stages find the function in the recipe."""
    (life.parent / "net.py").write_text(NET)
    text = life.read_text()
    start, end = text.index("model = {"), text.index("steps = 6")
    text = text[:start] + 'model = { factory = "./net.py:build", width = 16 }\n' + text[end:]
    life.write_text(text.replace('"pack", length = 32', '"pack", length = 32, isolate = "rows"'))
    made = run(load(life), Store(life.parent / "store"))
    numbers = made["judge"].figures["numbers"]
    assert (
        numbers["base"]["loss/code"] != numbers["merged"]["loss/code"] and numbers["base"]["loss/code"] < 5.7
    )
    told = json.loads((made["merged"].path / "factory.json").read_text())
    assert told["factory"] == "./net.py:build" and told["settings"]["width"] == 16
    before = [row["loss"] for row in made["base"].metrics()]
    assert before[-1] < before[0]
    (life.parent / "net.py").write_text(NET + "\n# another file\nEXTRA = 1\n")
    again = jobs(load(life), Store(life.parent / "store"))
    assert again[1].key != made["base"].path.name.split("-")[-1], (
        "the file is part of what the model depends on"
    )
