"""Runs that several laws look at are made once, and so are their failures."""
from __future__ import annotations

from pathlib import Path

import pytest
import torch

from trainwright import families
from trainwright.check import tiny
from trainwright.check.subject import Subject, logits


def test_what_is_made_once_is_the_same_for_all(tmp_path: Path) -> None:
    it = Subject("weight_decay", tmp_path)
    assert it.shapes == (tiny.LLAMA, tiny.GPT2) and not it.refused(tiny.LLAMA)
    run, start = it.trained(tiny.LLAMA)
    assert it.trained(tiny.LLAMA).run is run and run.ctx.step == 2
    assert any(not torch.equal(t, start[n]) for n, t in run.model.state_dict().items())
    assert it.scrambled(1) is it.scrambled(1) and it.scrambled(1) is not it.scrambled(2)


def test_an_exported_run_is_over(tmp_path: Path) -> None:
    it = Subject("lora", tmp_path)
    run = it.trained(tiny.LLAMA).run
    live, folder, unfolded = it.exported(tiny.LLAMA)
    assert not unfolded and torch.allclose(logits(families.load(folder, "test").eval()), live, atol=1e-4)
    assert it.exported(tiny.LLAMA).folder == folder and it.trained(tiny.LLAMA).run is not run


def test_a_failure_is_made_once_too(tmp_path: Path) -> None:
    it, tried = Subject("weight_decay", tmp_path), []

    def fails() -> None:
        tried.append(1)
        raise ZeroDivisionError("once")
    for _ in range(3):
        with pytest.raises(ZeroDivisionError, match="once"):
            it.once("failure", fails)
    assert tried == [1]


def test_a_method_is_tried_on_the_family_that_it_is_for(tmp_path: Path) -> None:
    it = Subject("masked_token", tmp_path)
    assert it.shapes == (tiny.BERT, tiny.DISTILBERT)
    assert {m.name for m in it.stage().methods} >= {"mask_words", "masked_token"}
    assert tiny.kinds_for(None) == (tiny.LLAMA, tiny.GPT2)
