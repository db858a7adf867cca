"""What stages leave of surgeries: a plain checkpoint of what folds; the rest stays whole
through later stages."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from tests.lm.architectures import IDS, make
from trainwright import families
from trainwright.check import tiny
from trainwright.core import registry
from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.core.method import Surgery
from trainwright.core.recipe import load
from trainwright.families import deltas
from trainwright.finetune.nola import Nola
from trainwright.life.jobs import jobs
from trainwright.life.run import run
from trainwright.lm import generation
from trainwright.planning.plan import plan
from trainwright.pretrain.mix_ln import MixLn
from trainwright.pretrain.polycom import Polycom
from trainwright.storage.store import Store

ADAPT = '{ use = "next_token" }, { use = "adamw", lr = 1e-2 }]\n\n[[stage]]\nname = "merged"'
FURTHER = """
[[stage]]
name = "further"
kind = "train"
from = { model = "adapt", data = "corpus" }
steps = 2
batch_tokens = 256
precision = "fp32"
compile = false
methods = [{ use = "pack", length = 32 }, { use = "next_token" }, { use = "adamw", lr = 1e-2 }]
"""


def beside(life: Path) -> Path:
    """The tiny life, adapted by a network beside the model, trained further and measured, without a merge."""
    text = life.read_text()
    merge, judge = text.index('[[stage]]\nname = "merged"'), text.index('[[stage]]\nname = "judge"')
    text = text[:merge] + FURTHER + text[judge:].replace('["base", "merged"]', '["base", "adapt", "further"]')
    at = text.index('domains = ["code"] },')
    life.write_text(
        text[:at] + 'domains = ["code"] }, { use = "lst", reduction = 4, samples = 2 },' + text[at + 21 :]
    )
    return life


@pytest.mark.slow
def test_a_part_that_does_not_fold_lives_through_later_stages(life: Path) -> None:
    recipe, store = load(beside(life)), Store(life.parent / "store")
    before = {s.job.stage.name: s for s in plan(recipe, store, estimate=False).stages}
    made = run(recipe, store)
    assert set(before) == set(made)
    adapt, further, judge = made["adapt"], made["further"], made["judge"]
    for artifact in (adapt, further):
        assert {f.name for f in artifact.path.iterdir() if f.is_dir()} == {"backbone", "adapter"}
        assert artifact.figures["stored_bytes"] > artifact.figures["delta_bytes"] > 0
        assert (
            families.load_tokenizer(artifact.path, "a test") is not None
            and not (artifact.path / "config.json").exists()
        )
    base, one, two = (families.load(a.path, "a test").eval() for a in (made["base"], adapt, further))
    plain = {n: t for n, t in two.state_dict().items() if not n.startswith("ladder.")}
    assert all(torch.equal(t, base.state_dict()[n]) for n, t in plain.items())  # the backbone never moves
    side = [n for n, p in one.named_parameters() if p.requires_grad]
    assert side and all(n.startswith("ladder.") for n in side)
    assert any(
        not torch.equal(one.get_parameter(n), two.get_parameter(n)) for n in side
    )  # the side network goes on
    assert further.figures["trainable_parameters"] == sum(one.get_parameter(n).numel() for n in side)
    assert further.metrics()[0]["loss"] < adapt.metrics()[0]["loss"]
    numbers = judge.figures["numbers"]
    assert len({numbers[n]["loss/prose"] for n in ("base", "adapt", "further")}) == 3
    assert generation.generate(further.path, "the", 4, 0.0, False, 0)
    with pytest.raises(UserError, match="this needs a plain checkpoint"):
        families.export(further.path, life.parent / "out", "float32")


def test_merging_such_a_model_is_refused_by_the_plan(life: Path) -> None:
    text = life.read_text()
    at = text.index('domains = ["code"] },')
    life.write_text(text[:at] + 'domains = ["code"] }, { use = "lst", reduction = 4 },' + text[at + 21 :])
    with pytest.raises(UserError, match="adapt has a part that cannot be folded into its weights"):
        jobs(load(life), Store(life.parent / "store"))


class Louder(Surgery):
    """A surgery that folds and saves nothing."""

    factor: float = 2.0

    def operate(self, model: nn.Module, ctx: Context) -> None:
        model.get_output_embeddings().weight.data.mul_(self.factor)


class Beside(Louder):
    """One that does not fold, and forgets to save."""

    folds = False


def test_what_saves_nothing_leaves_nothing(tmp_path: Path) -> None:
    model = make("llama")
    Louder().operate(model, Context())
    logits = model(input_ids=IDS).logits
    assert deltas.write(model, [Louder()], 0, tmp_path, None) == []
    assert not list(tmp_path.glob("adapter*")) and torch.equal(
        families.load(tmp_path, "test").eval()(input_ids=IDS).logits, logits
    )
    with pytest.raises(TypeError, match="what it learned would be lost"):
        deltas.write(model, [Beside()], 0, tmp_path, None)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("method", [MixLn(post_ln=0.5), Polycom()], ids=lambda m: m.name)
def test_what_is_no_model_by_itself_is_no_checkpoint_for_others(
    method: Surgery, kind: str, tmp_path: Path
) -> None:
    """Its weights would load, and compute something else."""
    model, ctx = make(kind), Context(seed=0)
    method.operate(model, ctx)
    logits = model.eval()(input_ids=IDS).logits
    deltas.write(model, [method], 0, tmp_path, None)
    assert families.weight_files(tmp_path / "backbone")
    for place in (tmp_path, tmp_path / "backbone"):
        for reader in (AutoConfig, AutoModel, AutoModelForCausalLM):
            with pytest.raises((OSError, ValueError)):
                reader.from_pretrained(place)
    again = families.load(tmp_path, "test").eval()
    assert torch.allclose(again(input_ids=IDS).logits, logits, atol=1e-5)
    assert families.load_config(tmp_path, "test").hidden_size == model.config.hidden_size
    with pytest.raises(UserError, match="with a part that cannot be folded into its weights"):
        families.check_folder(tmp_path, "test")


def test_the_table_beside_a_delta_says_how_it_was_made(tmp_path: Path) -> None:
    method, model = Nola(bases=3, layers="attention"), make("llama")
    method.operate(model, Context(seed=9))
    deltas.write(model, [method], 9, tmp_path, None)
    told = json.loads((tmp_path / "adapter" / "surgery.json").read_text())
    assert told == {
        "surgery": {"use": "nola", "bases": 3, "rank": 8, "alpha": 8.0, "layers": "attention"},
        "seed": 9,
        "folded": True,
        "order": 1,
    }


NOTES = '''"""A note."""
from pathlib import Path
from trainwright.core.method import Surgery

Path(__file__).with_name("ran").touch()


class Notes(Surgery):
    """Does nothing."""

    folds = False

    def operate(self, model, ctx):
        return None

    def save_delta(self, model, folder):
        folder.mkdir(parents=True)

    def load_delta(self, model, folder):
        return None
'''


def stranger(folder: Path, use: str, **table: object) -> Path:
    """A model folder with safetensors and JSON, whose delta names a file of code."""
    families.save(make("llama"), folder / "backbone", None)
    (folder / "adapter").mkdir()
    written = {"surgery": {"use": use}, "seed": 0, "folded": False, "order": 1} | table
    (folder / "adapter" / "surgery.json").write_text(json.dumps(written))
    (folder / "adapter" / "notes.py").write_text(NOTES)
    return folder


def test_a_model_folder_runs_no_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only a file that the recipe in hand names is run, whatever a delta says: from anywhere, by any path."""
    monkeypatch.chdir(tmp_path)
    folder = stranger(tmp_path / "model", "")
    file = folder / "adapter" / "notes.py"
    for use in (str(file), "model/adapter/notes.py", "./model/adapter/../adapter/notes.py"):
        table = {"surgery": {"use": use}, "seed": 0, "folded": False, "order": 1}
        (folder / "adapter" / "surgery.json").write_text(json.dumps(table))
        with pytest.raises(UserError, match=r"notes\.py, and a folder alone runs nothing: name that file in"):
            families.load(folder, "test")
    assert not (folder / "adapter" / "ran").exists()
    registry.create({"use": "./notes.py"}, file.parent, "a recipe that a person named")
    assert [type(s).__name__ for s, _ in deltas.carried(families.load(folder, "test"))] == ["Notes"]


@pytest.mark.parametrize("use", ["os.py", "../lora.py", "/dev/zero.py", "adamw", "no_such_method", "",
                                 "x" * 5000])
def test_a_delta_of_what_is_no_surgery_is_refused(use: str, tmp_path: Path) -> None:
    with pytest.raises(UserError):
        families.load(stranger(tmp_path / "model", use), "test")


@pytest.mark.parametrize("table", [
    {"seed": "x"}, {"seed": None}, {"order": "first"}, {"surgery": []}, {"surgery": {"use": 7}},
    {"surgery": None}, {"surgery": {"use": "nola", "rank": -1}}, {"surgery": {"use": "nola", "rank": 2**63}},
    {"surgery": {"use": "nola", "x": 1}}])
def test_a_damaged_delta_is_named(table: dict[str, object], tmp_path: Path) -> None:
    folder = stranger(tmp_path / "model", "nola", **table)
    with pytest.raises(UserError, match="adapter"):
        families.load(folder, "test")


@pytest.mark.parametrize("text", ["", "{", "[]", "7", "[" * 100_000, '{"order": 1}'])
def test_a_delta_that_is_no_table_is_named(text: str, tmp_path: Path) -> None:
    folder = stranger(tmp_path / "model", "nola")
    (folder / "adapter" / "surgery.json").write_text(text)
    with pytest.raises(UserError, match=r"adapter/surgery\.json"):
        families.load(folder, "test")


@pytest.mark.parametrize("changed", [{"bottleneck": 2**31 - 1}, {"prefix": 2**31 - 1, "hidden": 2**31 - 1}])
def test_a_delta_of_absurd_size_takes_no_memory(changed: dict[str, int], tmp_path: Path) -> None:
    model, method = tiny.model(), registry.create({"use": "mam_adapter"}, Path(), "here")
    method.operate(model, Context())
    deltas.write(model, [method], 0, tmp_path, None)
    file = tmp_path / "adapter" / "surgery.json"
    table = json.loads(file.read_text())
    table["surgery"] |= changed
    file.write_text(json.dumps(table))
    with pytest.raises(UserError, match=r"adapter: .*its surgery\.json (would put|describes cannot be made)"):
        families.load(tmp_path, "test")
