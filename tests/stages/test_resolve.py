"""What laws fill in where a recipe leaves it out, and that they touch nothing that it says."""
from __future__ import annotations

import copy
import tomllib
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from tests.conftest import LIFE, Ranks, write_texts
from trainwright import families
from trainwright.core import registry, sharding
from trainwright.core.errors import UserError
from trainwright.core.recipe import Recipe, parse
from trainwright.life.jobs import Job, jobs
from trainwright.life.listener import Listener
from trainwright.life.run import run
from trainwright.planning.plan import plan
from trainwright.search.step_law import StepLaw
from trainwright.stages import _resolve
from trainwright.storage.store import Store

TABLE = tomllib.loads(LIFE)
BODY = 2 * (16 * 16 * 2 + 16 * 8 * 2 + 3 * 16 * 32)
"""Matrices of the tiny life's two layers: queries and outputs, keys and values of one head, three of
the feed-forward part."""
LAW = {"use": "step_law"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("filling")
    write_texts(made / "texts")
    return made


def recipe(folder: Path, optimizer: dict[str, Any] | None = None, schedule: dict[str, Any] | None = None,
           law: dict[str, Any] | None = None, **stage: Any) -> Recipe:
    """The tiny life's first two stages; without more, the second says neither rate nor batch
    and goes 20,000 tokens."""
    table = copy.deepcopy({"seed": 3, "stage": TABLE["stage"][:2]})
    base = table["stage"][1]
    for key in ("steps", "batch_tokens"):
        del base[key]
    base["methods"] = [{"use": "pack", "length": 32}, {"use": "next_token"}, optimizer or {"use": "adamw"}]
    base["methods"] += [one for one in (schedule, law) if one]
    base |= {"tokens": 20_000} | stage if not {"steps", "epochs"} & set(stage) else stage
    return parse(
        {**table, "stage": [table["stage"][0], {k: v for k, v in base.items() if v is not None}]},
        folder / "life.toml",
    )


def made(folder: Path, **changes: Any) -> Job:
    return jobs(recipe(folder, **changes), Store(folder / "store"))[1]


def of(job: Job, use: str) -> dict[str, Any]:
    return next(m for m in job.settings["methods"] if m["use"] == use)


def test_what_is_left_out_is_what_the_formula_says(folder: Path) -> None:
    job, law = made(folder, schedule={"use": "cosine", "warmup": 0.1}), StepLaw()
    lr = 1.79 * BODY ** -0.713 * 20_000 ** 0.307
    assert of(job, "adamw")["lr"] == pytest.approx(lr, rel=1e-3) and of(job, "cosine")["warmup"] == 0.1
    assert of(job, "cosine")["final"] == pytest.approx(1e-5 / lr, rel=1e-3)
    assert law.batch(20_000) == pytest.approx(165.6, abs=0.1) and job.settings["batch_tokens"] == 160, (
        "five rows of 32 tokens"
    )
    assert of(job, "step_law")["lr_scale"] == 1.79, "the law stands in the settings, and so in the hash"
    (line,) = job.told
    told = (
        "adamw.lr = 0.0",
        "batch_tokens = 160",
        "cosine.final = ",
        f"{BODY:,} parameters",
        "20,000 tokens",
        "extrapolated",
    )
    assert not [word for word in told if word not in line]


def test_a_recipe_that_says_everything_has_no_law(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for said in ({"batch_tokens": 256}, {"batch_size": 8}):
        job = made(folder, optimizer={"use": "adamw", "lr": 1e-2}, **said)
        assert job.told == [] and "step_law" not in job.uses and of(job, "adamw")["lr"] == 1e-2
        with monkeypatch.context() as without:
            without.setattr(registry, "default_of", lambda kind: None)
            assert made(folder, optimizer={"use": "adamw", "lr": 1e-2}, **said).key == job.key


def test_each_setting_that_is_said_stays(folder: Path) -> None:
    rate = made(folder, optimizer={"use": "adamw", "lr": 1e-2}, schedule={"use": "cosine"})
    assert (
        of(rate, "adamw")["lr"] == 1e-2
        and of(rate, "cosine")["final"] == 0.1
        and rate.settings["batch_tokens"] == 160
    )
    assert "adamw.lr = 0.01 stays as the recipe says it" in rate.told[0]
    batch = made(folder, batch_size=8)
    assert batch.settings["batch_size"] == 8 and batch.settings["batch_tokens"] is None
    assert of(batch, "adamw")["lr"] > 0.05 and "the batch of 256 tokens stays" in batch.told[0]
    end = made(folder, schedule={"use": "cosine", "final": 0.1})
    assert of(end, "cosine")["final"] == 0.1 and "cosine.final = 0.1 stays" in end.told[0]


def test_a_named_law_with_constants_of_ones_own(folder: Path) -> None:
    own = LAW | {
        "lr_scale": 0.01,
        "lr_parameters": 0.0,
        "lr_tokens": 0.0,
        "batch_scale": 512.0,
        "batch_exponent": 0.0,
        "final_lr": False,
        "fitted_parameters": [1e3, 1e5],
        "fitted_tokens": [1e4, 1e5],
    }
    job = made(folder, law=own, schedule={"use": "cosine"})
    assert (
        of(job, "adamw")["lr"] == 0.01
        and job.settings["batch_tokens"] == 512
        and of(job, "cosine")["final"] == 0.1
    )
    assert "extrapolated" not in job.told[0] and job.uses.count("step_law") == 1
    nothing = made(folder, law=own, optimizer={"use": "adamw", "lr": 0.5}, batch_tokens=64)
    assert "has nothing to fill in" in nothing.told[0] and of(nothing, "adamw")["lr"] == 0.5


def test_with_steps_the_batch_decides_how_many_tokens_there_are(folder: Path) -> None:
    job = made(folder, steps=10)
    assert job.settings["batch_tokens"] is None and "the batch stays as it is" in job.told[0]
    assert of(job, "adamw")["lr"] == pytest.approx(1.79 * BODY**-0.713 * (10 * 8192) ** 0.307, rel=1e-3), (
        "8,192 by default"
    )
    smaller = made(folder, steps=10, batch_size=4)
    assert of(smaller, "adamw")["lr"] == pytest.approx(1.79 * BODY ** -0.713 * (10 * 128) ** 0.307, rel=1e-3)


def test_where_it_cannot_speak_it_does_not_stand_in(folder: Path) -> None:
    by_passes = made(folder, epochs=2.0)
    assert by_passes.told == [] and of(by_passes, "adamw")["lr"] == 1e-3
    other = made(folder, optimizer={"use": "torch_optim", "optimizer": "SGD"})
    assert other.told == [] and other.settings["batch_tokens"] is None
    with pytest.raises(UserError, match="stage 'base': step_law must know the number of tokens"):
        made(folder, law=LAW, epochs=2.0)
    named = made(folder, law=LAW, optimizer={"use": "torch_optim", "optimizer": "SGD"})
    assert (
        "there is no adamw here for its adamw.lr" in named.told[0] and named.settings["batch_tokens"] == 160
    )


def test_continued_training_keeps_the_defaults(folder: Path) -> None:
    start = folder / "start"
    if not start.is_dir():
        table = dict(TABLE["stage"][1]["model"])
        families.save(
            families.create(families.from_table(table | {"vocab_size": 300}, None, "test"), 0, "test"),
            start,
            None,
        )
    changes = {"model": None, "from": {"model": str(start), "data": "corpus"}}
    job = made(folder, **changes)
    assert job.told == [] and of(job, "adamw")["lr"] == 1e-3 and job.settings["batch_tokens"] is None
    with pytest.raises(
        UserError, match="step_law is a law of training from scratch, and this stage goes on with a model"
    ):
        made(folder, law=LAW, **changes)


OTHER = '''"""Another law."""
from trainwright.core.method import ScalingLaw


class Other(ScalingLaw):
    """Another law."""

    def suggest(self, known):
        return {NAME: 0.25}
'''


def test_two_laws_fill_in_different_settings(folder: Path) -> None:
    (folder / "other.py").write_text(OTHER.replace("NAME", '"adamw.beta1"'))
    (folder / "same.py").write_text(OTHER.replace("NAME", '"adamw.lr"'))
    table = recipe(folder, law=LAW)
    base = table.stages[1]

    def both(use: str) -> Job:
        object.__setattr__(base, "methods", (*base.methods[:4], {"use": use}))
        return jobs(table, Store(folder / "store"))[1]
    assert of(both("./other.py"), "adamw")["beta1"] == 0.25 and len(both("./other.py").told) == 2
    with pytest.raises(UserError, match=r"step_law and other both suggest adamw.lr"):
        both("./same.py")


@pytest.mark.slow
def test_a_batch_is_whole_rows_and_the_same_on_several_ranks(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for tokens in (1, 31, 100, 1_000, 12_345, 1e6, 3.7e7):
        for row in (32, 96, 2048):
            one = _resolve.whole_batch(tokens, row, 1)
            assert one % row == 0 and (one == row or abs(one / tokens - 1) <= 0.5)
            if tokens >= 8 * row:
                assert abs(one / tokens - 1) < 0.13
            for parts in (2, 4, 8, 3):
                shared = _resolve.whole_batch(tokens, row, parts)
                assert shared % (row * parts) == 0 and shared > 0
                assert shared == one or parts == 3 or one < 4 * parts * row
    keys, batches = [], []
    for ranks in (1, 2, 4):
        monkeypatch.setattr(sharding, "world", lambda ranks=ranks: ranks)
        keys.append(made(folder, tokens=2_000_000).key)
        batches += [made(folder, tokens=2_000_000, accumulate=n).settings["batch_tokens"] for n in (1, 2, 4)]
        few = made(folder, accumulate=3)
        assert few.settings["batch_tokens"] % (32 * 3 * ranks) == 0
    assert len(set(keys)) == len(set(batches)) == 1


def test_parameters_are_counted_as_in_the_paper() -> None:
    """layers (4 h^2 + 3 h ffn): no embeddings, no head, no norms, whatever the vocabulary
    and whether it is tied."""
    for vocabulary, tied in ((300, False), (5000, False), (5000, True)):
        table = {
            "type": "llama",
            "hidden_size": 32,
            "intermediate_size": 88,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "vocab_size": vocabulary,
            "tie_word_embeddings": tied,
        }
        skeleton = families.skeleton(families.from_table(table, None, "test"), "test")
        assert families.body_parameters(skeleton) == 3 * (4 * 32 * 32 + 3 * 32 * 88)
    gpt2 = families.from_table(
        {"type": "gpt2", "n_embd": 32, "n_layer": 2, "n_head": 2, "vocab_size": 999}, None, "test"
    )
    assert families.body_parameters(families.skeleton(gpt2, "test")) == 2 * 12 * 32 * 32


class Ear(Listener):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, line: str) -> None:
        self.lines.append(line)


@pytest.mark.slow
def test_a_run_says_what_was_filled_in_and_keeps_it(folder: Path) -> None:
    life, store, ear = recipe(folder, tokens=640), Store(folder / "store"), Ear()
    told = str(plan(life, store, estimate=False))
    assert "step_law fills in adamw.lr = " in told and "batch_tokens = 32 (it asks for 23)" in told
    base = run(life, store, ear)["base"]
    assert any(line.startswith("base: step_law fills in adamw.lr = ") for line in ear.lines)
    lr = 1.79 * BODY ** -0.713 * 640 ** 0.307
    settings = base.manifest["settings"]
    assert next(m for m in settings["methods"] if m["use"] == "adamw")["lr"] == pytest.approx(lr, rel=1e-3)
    assert settings["batch_tokens"] == 32 and base.figures["steps"] == 20
    assert base.metrics()[0]["lr"] == pytest.approx(lr, rel=1e-3), "it trained with that rate"
    assert run(life, store)["base"].path == base.path and all(s.cached for s in plan(life, store).stages)


@pytest.mark.slow
def test_two_ranks_fill_in_the_same_and_make_the_same_artifact(folder: Path, ranks: Ranks) -> None:
    text = LIFE.split('[[stage]]\nname = "adapt"')[0].replace(
        "steps = 6\nbatch_tokens = 256", "tokens = 1024", 1
    )
    law = (
        '{ use = "step_law", lr_scale = 0.01, lr_parameters = 0, lr_tokens = 0, batch_scale = 256, '
        'batch_exponent = 0 }'
    )
    (folder / "life.toml").write_text(
        text.replace('{ use = "adamw", lr = 1e-2 }', '{ use = "adamw", eps = 1e-6 }, ' + law)
    )
    for number in (1, 2):
        done = ranks(folder, f"on{number}", number)
        assert done.returncode == 0, done.stdout
        assert done.stdout.count("base: step_law fills in adamw.lr = 0.01, batch_tokens = 256") == 1
    one, two = (next((folder / f"on{number}").glob("base-*")) for number in (1, 2))
    assert one.name == two.name
    weights = [load_file(f / "model.safetensors") for f in (one, two)]
    assert all(float((w - weights[1][n]).abs().max()) < 1e-5 for n, w in weights[0].items())
