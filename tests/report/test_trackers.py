from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from trainwright.core.errors import UserError
from trainwright.core.recipe import load
from trainwright.life.listener import Listener
from trainwright.report import trackers

LIFE = trackers.Life("life", {"recipe": {"seed": 3, "text": "[[stage]]"}, "hardware": "a machine",
                              "versions": {"torch": "2"}})


def tell(to: Listener) -> None:
    """A short run, as the loop tells it."""
    to.stage("corpus", "corpus", "cached", {"tokens": 5, "path": "x"})
    to.stage("base", "train", "started", {"steps": 2})
    for step, loss in ((1, 4.0), (2, 3.0)):
        to.step("base", {"step": step, "steps": 2, "loss": loss, "lr": 0.1, "eval/loss/prose": loss + 1})
    to.say("a line")
    to.stage(
        "base",
        "train",
        "finished",
        {"steps": 2, "loss": 3.0, "evaluation": {"loss/prose": 3.5}, "resumed": False, "path": "x"},
    )
    to.close()
    to.close()  # a command line that was interrupted closes twice


class Fake:
    """A tracker's package that remembers its calls."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []
        self.info = SimpleNamespace(run_id="a run")

    def __getattr__(self, name: str) -> Any:
        def call(*args: Any, **keywords: Any) -> Any:
            self.calls.append((name, args, keywords))
            return self

        return call

    def of(self, name: str) -> list[tuple[tuple[Any, ...], dict[str, Any]]]:
        return [(args, keywords) for n, args, keywords in self.calls if n == name]


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Fake:
    made = Fake()
    for name in ("wandb", "mlflow", "trackio"):
        monkeypatch.setitem(sys.modules, name, made)  # type: ignore[arg-type]
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "WANDB_PROJECT"):
        monkeypatch.delenv(name, raising=False)
    return made


def test_tensorboard_can_be_read_back(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    tell(trackers.make("tensorboard", tmp_path, LIFE))
    read = EventAccumulator(str(tmp_path / "life" / "base")).Reload()
    assert [(e.step, e.value) for e in read.Scalars("loss")] == [(1, 4.0), (2, 3.0)]
    assert [e.value for e in read.Scalars("final/evaluation/loss/prose")] == [3.5]
    assert "steps" not in read.Tags()["scalars"] and not (tmp_path / "life" / "corpus").exists()


def test_tensorboard_hides_steps_that_were_taken_again(tmp_path: Path) -> None:
    """A run that died at step 3 and went on from its checkpoint at 1 shows each step once."""
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for steps, loss in (((1, 2, 3), 4.0), ((2, 3, 4), 2.0)):
        one = trackers.make("tensorboard", tmp_path, LIFE)
        for step in steps:
            one.step("base", {"step": step, "steps": 4, "loss": loss})
        one.close()
    read = EventAccumulator(str(tmp_path / "life" / "base")).Reload()
    assert [(e.step, e.value) for e in read.Scalars("loss")] == [(1, 4.0), (2, 2.0), (3, 2.0), (4, 2.0)]


def test_wandb(fake: Fake, tmp_path: Path) -> None:
    tell(trackers.make("wandb", tmp_path, LIFE))
    assert fake.of("init") == [((), {"project": "trainwright", "name": "life", "dir": str(tmp_path),
                                     "id": LIFE.id, "resume": "allow", "config": LIFE.config})]
    assert fake.of("define_metric") == [(("base/*",), {"step_metric": "base/step"})]
    assert fake.of("log")[1] == (
        ({"base/loss": 3.0, "base/lr": 0.1, "base/eval/loss/prose": 4.0, "base/step": 2},),
        {},
    )
    assert fake.calls[-1][0] == "finish"


def test_mlflow(fake: Fake, tmp_path: Path) -> None:
    one = trackers.make("mlflow", tmp_path, LIFE)
    one.step("base", {"step": 1, "steps": 2, "eval/loss/c++ (old)": 1.0})
    tell(one)
    assert fake.of("set_tracking_uri") == [((f"sqlite:///{(tmp_path / 'mlflow.db').resolve()}",), {})]
    assert fake.of("log_metrics")[0] == (
        ({"base/eval/loss/c__ _old_": 1.0},),
        {"step": 1},
    )  # letters that MLflow takes
    assert fake.of("log_metrics")[-1] == (
        ({"base/final/steps": 2.0, "base/final/loss": 3.0, "base/final/evaluation/loss/prose": 3.5},),
        {"step": 2},
    )
    assert fake.calls[-1][0] == "end_run"


def test_a_run_that_goes_on_is_the_same_run(fake: Fake, tmp_path: Path) -> None:
    for number in range(2):
        tell(trackers.make("mlflow", tmp_path, LIFE))
        assert len(fake.of("start_run")) == number + 1
    first, second = (keywords["run_id"] for _, keywords in fake.of("start_run"))
    assert first is None and second == (tmp_path / f"mlflow-{LIFE.id}.txt").read_text()
    assert LIFE.id == trackers.Life("life", dict(LIFE.config, hardware="another machine")).id
    assert LIFE.id != trackers.Life("life", dict(LIFE.config, recipe={"seed": 4})).id, "another recipe"


@pytest.mark.parametrize("name", ["wandb", "mlflow", "trackio"])
def test_a_recipe_of_which_nothing_is_left_to_run_makes_no_run(name: str, fake: Fake, tmp_path: Path) -> None:
    one = trackers.make(name, tmp_path, LIFE)
    one.stage("base", "train", "cached", {"steps": 2, "loss": 3.0, "path": "x"})
    one.close()
    assert not fake.calls


@pytest.mark.parametrize(("name", "call"), [("wandb", "Table"), ("mlflow", "log_text")])
def test_what_the_model_wrote_is_sent(name: str, call: str, fake: Fake, tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text('{"texts": {"samples": "the sea"}}')
    one = trackers.make(name, tmp_path, LIFE)
    one.stage("base", "train", "finished", {"steps": 2, "loss": 3.0, "path": str(tmp_path)})
    assert "the sea" in str(fake.of(call))


def test_the_life_of_a_recipe_is_its_whole_table(life: Path) -> None:
    told = trackers.life(load(life))
    assert told.name == "life" and told.config["versions"]["torch"] and told.config["hardware"]
    assert told.config["recipe"]["stages"]["base"]["methods"][0]["use"] == "pack"
    assert told.config["recipe"]["text"] == life.read_text()


def test_mlflow_goes_where_the_user_says(fake: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://here")
    tell(trackers.make("mlflow", tmp_path, LIFE))
    assert fake.of("set_tracking_uri") == []


def test_trackio(fake: Fake, tmp_path: Path) -> None:
    tell(trackers.make("trackio", tmp_path, LIFE))
    assert fake.of("log")[0] == (
        ({"base/loss": 4.0, "base/lr": 0.1, "base/eval/loss/prose": 5.0, "base/step": 1},),
        {},
    )
    assert fake.calls[-1][0] == "finish"


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "mlflow", "trackio"])
def test_a_missing_package_names_the_extra(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, name, None)  # type: ignore[arg-type]
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard", raising=False)
    with pytest.raises(UserError, match=rf"pip install 'trainwright\[{name}\]'"):
        trackers.make(name, tmp_path / "t", LIFE)
    assert not (tmp_path / "t").exists()


def test_an_unknown_name_is_told_with_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no tracker 'tensorbord' \(did you mean 'tensorboard'\?\)"):
        trackers.make("tensorbord", tmp_path, LIFE)


def test_flat_figures() -> None:
    assert trackers.flat({"a": 1, "b": {"c/d": 2.5, "e": True, "f": None}, "g": "x"}) == {
        "a": 1.0,
        "b/c/d": 2.5,
    }


def test_adapters_are_thin() -> None:
    import inspect

    assert all(len(inspect.getsource(cls).splitlines()) <= 30 for cls in trackers.Tracker.__subclasses__())
    assert SimpleNamespace(n=len(trackers.Tracker.__subclasses__())).n == 4
