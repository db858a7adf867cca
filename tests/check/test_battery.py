"""The battery from outside: one call for anybody's method, expected failures, and what the command says."""
from __future__ import annotations

import unittest
from pathlib import Path

import pytest
from typer.testing import CliRunner

from trainwright.check import Result, battery, check_method, checks
from trainwright.check.laws import LAWS, Law
from trainwright.check.ranks import RANKS
from trainwright.cli import app
from trainwright.core import registry
from trainwright.core.errors import UserError
from trainwright.core.method import KINDS, Update

HEAD = '''"""What it does, in one line."""
from typing import Any, ClassVar

import torch

from trainwright.core.claims import match
from trainwright.core.method import *


'''
SOUND = (
    HEAD
    + '''class Mine(Update):
    """Sharpness-aware: takes the step with the gradients a little way uphill, asked for within it."""

    radius: float = 0.01
    """How far uphill."""
    off: ClassVar[dict[str, Any] | None] = {"radius": 0.0}

    def init(self, model, ctx):
        params = dict(model.named_parameters())
        means = {n: {"mean": torch.zeros_like(params[n])} for n in match(self.params, params)}
        return {"param": means, "shared": {"steps": 0}}

    def update(self, updates, params, state, ctx):
        state["shared"]["steps"] += 1
        for n, u in updates.items():
            state["param"][n]["mean"].lerp_(u, 0.1)
        if not self.radius:
            return updates
        uphill = {n: self.radius * ctx.grads[n] for n in updates}
        for n, u in uphill.items():
            params[n].add_(u)
        again = ctx.again()
        for n, u in uphill.items():
            params[n].sub_(u)
        return {n: u + again[n] for n, u in updates.items()}
'''
)

HANDS_ON = '''class Mine(Arithmetic):
    """Scales what it should leave as it is."""

    def combine(self, name, tensors, base, ctx):
        return 2 * tensors[0]
'''
NO_COUNT = '''class Mine(Objective):
    """Counts nothing."""

    def loss(self, model, batch, state, ctx):
        return batch["input_ids"].float()
'''
LAW = "equal_tensors_stay"


def written(folder: Path, text: str) -> Path:
    (folder / "mine.py").write_text(HEAD + text)
    return folder / "mine.py"


def by_law(found: list[Result]) -> dict[str, Result]:
    assert len({r.law for r in found}) == len(found)
    return {r.law: r for r in found}


@pytest.mark.slow
def test_a_sound_method_passes_the_command_and_a_broken_one_does_not(tmp_path: Path) -> None:
    said = CliRunner().invoke(app, ["check", str(written(tmp_path, SOUND))])
    assert said.exit_code == 0, said.output
    assert RANKS in said.output and "FAILED" not in said.output
    laws = sum(law.applies(registry.load(tmp_path / "mine.py")) for law in LAWS) + 1
    assert said.output.splitlines()[-1] == f"{laws} checks of 1 method: {laws} passed, 0 failed"
    (tmp_path / "other").mkdir()
    said = CliRunner().invoke(app, ["check", str(written(tmp_path / "other", HANDS_ON))])
    assert said.exit_code == 1 and "FAILED" in said.output
    assert said.output.splitlines()[-1] == "5 checks of 1 method: 4 passed, 1 failed"


def test_what_is_not_defined_is_said_once(tmp_path: Path) -> None:
    said = CliRunner().invoke(app, ["check", str(written(tmp_path, NO_COUNT))])
    assert said.exit_code == 1 and said.output.count("it does not define count") == 1
    assert (
        said.output.splitlines()[-1] == "1 check of 1 method: 0 passed, 1 failed"
        and "Error" not in said.output
    )


def test_one_call_holds_a_method_to_every_law(tmp_path: Path) -> None:
    found = by_law(check_method(written(tmp_path, HANDS_ON)))
    assert found[LAW].status == "failed" and "it makes another one" in found[LAW].why
    assert [r.status for law, r in found.items() if law != LAW] == ["passed"] * 4
    assert set(found) == {law.name for law in LAWS if law.applies(registry.load(tmp_path / "mine.py"))}


def test_a_class_is_named_by_itself(tmp_path: Path) -> None:
    cls = registry.load(written(tmp_path, HANDS_ON).resolve())
    assert [r.status for r in check_method(cls)] == [r.status for r in check_method(tmp_path / "mine.py")]
    assert check_method(registry.find("slerp"))[0].method == "slerp"


def test_an_expected_failure_has_a_reason_and_must_come(tmp_path: Path) -> None:
    file = written(tmp_path, HANDS_ON)
    found = by_law(check_method(file, {LAW: "it doubles on purpose"}))
    assert (
        found[LAW].ok
        and found[LAW].status == "expected"
        and found[LAW].why.startswith("it doubles on purpose (of two")
    )
    found = by_law(check_method(file, {LAW: "it doubles", "a_merge_is_the_same_twice": "it draws"}))
    assert (
        not found["a_merge_is_the_same_twice"].ok
        and "expected to be broken: it draws" in found["a_merge_is_the_same_twice"].why
    )
    with pytest.raises(
        UserError, match=r"no law 'equal_tensor_stay' \(did you mean 'equal_tensors_stay'\?\)"
    ):
        check_method(file, {"equal_tensor_stay": "a slip"})
    with pytest.raises(UserError, match="say why"):
        check_method(file, {LAW: " "})


def test_a_class_says_itself_what_it_breaks(tmp_path: Path) -> None:
    says = f'    expected_failures: ClassVar[dict[str, str]] = {{"{LAW}": "it doubles"}}\n\n    def combine'
    assert all(r.ok for r in check_method(written(tmp_path, HANDS_ON.replace("    def combine", says))))


def test_checks_are_one_function_for_each_law(tmp_path: Path) -> None:
    every = checks(written(tmp_path, HANDS_ON))
    assert [name for name, _ in every] == [r.law for r in check_method(tmp_path / "mine.py")]
    for name, check in every:
        if name == LAW:
            with pytest.raises(AssertionError, match="it makes another one"):
                check()
        else:
            check()
    dict(checks(tmp_path / "mine.py", {LAW: "it doubles"}))[LAW]()
    assert RANKS in dict(checks("clip_gradients"))


def test_what_needs_a_package_that_is_not_there_is_left_out(tmp_path: Path) -> None:
    needs = '    needs: ClassVar[tuple[str, ...]] = ("no_such_package",)\n\n    def combine'
    file = written(tmp_path, HANDS_ON.replace("    def combine", needs))
    assert check_method(file) == [Result(str(file), "all laws", "skipped", "needs no_such_package")]
    for _, check in checks(file):
        with pytest.raises(unittest.SkipTest, match="needs no_such_package"):
            check()
    assert battery.summary(check_method(file)) == "0 checks of 1 method: 0 passed, 0 failed, 1 skipped"


def test_laws_of_several_kinds_are_those_of_each() -> None:
    names = {law.name for law in battery.laws_of(("Surgery", "Optimizer"))}
    assert {law.name for law in battery.laws_of(("Surgery",))} < names
    assert "params_limit_it" in names and "its_delta_comes_back" in names
    assert Law("any", (Update,), lambda it: None).applies(KINDS["Optimizer"])
