"""The stop: which losses end a stage, and which do not."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from trainwright.core.context import Context, View
from trainwright.core.errors import UserError
from trainwright.core.method import State, Stop
from trainwright.core.settings import make
from trainwright.optim.loss_spike_stop import LossSpikeStop


def fed(method: LossSpikeStop, losses: list[float], state: State | None = None) -> tuple[int | None, State]:
    """The index of the loss that stopped the run, or None."""
    state = method.init(nn.Linear(1, 1), Context()) if state is None else state
    for i, loss in enumerate(losses):
        for command in method.tick(View(i + 1, 1000, {"loss": loss}, {}), state):
            assert isinstance(command, Stop) and command.failed and "loss" in command.why
            return i, state
    return None, state


def test_the_limit_by_hand() -> None:
    """Of 1, 2, 3, 4, 9 the median is 3, the distances from it 2, 1, 0, 1, 6 and their median 1."""
    assert LossSpikeStop(window=8, deviations=2.0).limit([1.0, 2.0, 3.0, 4.0, 9.0]) == 3 + 2 * 1.4826


def test_a_jump_that_stays_stops_after_patience() -> None:
    calm = [2.0, 2.1, 1.9, 2.05, 1.95, 2.0]
    assert fed(LossSpikeStop(window=8, patience=3), [*calm, 6.0, 6.1, 5.9, 6.0])[0] == len(calm) + 2


def test_a_jump_that_passes_does_not() -> None:
    calm = [2.0, 2.1, 1.9, 2.05, 1.95, 2.0]
    assert fed(LossSpikeStop(window=8, patience=3), [*calm, 6.0, 6.1, 2.0, 6.0, 6.0, 2.0])[0] is None


def test_a_falling_noisy_loss_does_not() -> None:
    rng = torch.Generator().manual_seed(0)
    noise = (0.2 * torch.randn(2000, generator=rng)).tolist()
    assert fed(LossSpikeStop(), [2 + 6 * math.exp(-i / 200) + e for i, e in enumerate(noise)])[0] is None


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_loss_that_is_no_number_stops_at_once(loss: float) -> None:
    assert fed(LossSpikeStop(), [2.0, loss])[0] == 1


def test_equal_losses_leave_room() -> None:
    assert fed(LossSpikeStop(window=4, patience=1), [2.0, 2.0, 2.0, 2.0, 2.01])[0] is None


def test_before_the_first_step_there_is_nothing_to_judge() -> None:
    method = LossSpikeStop()
    assert list(method.tick(View(0, 10, {}, {}), method.init(nn.Linear(1, 1), Context()))) == []


def test_its_state_is_all_it_needs() -> None:
    """Cut anywhere and go on with the state: the same end."""
    method = LossSpikeStop(window=8, patience=3)
    losses = [2.0, 2.1, 1.9, 2.05, 1.95, 2.0, 6.0, 6.1, 5.9, 6.0]
    for cut in range(1, 8):
        state = fed(method, losses[:cut])[1]
        assert fed(method, losses[cut:], state)[0] == 8 - cut


@pytest.mark.parametrize("wrong", [{"window": 2}, {"patience": 0}, {"deviations": 0.0}])
def test_settings_out_of_range(wrong: dict[str, float]) -> None:
    with pytest.raises(UserError, match="at least"):
        make(LossSpikeStop, wrong, "here")
