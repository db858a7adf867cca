"""A failure in another process has a reason in one line; its death fails its work and nothing else."""

import operator
import os
import signal

import pytest

from trainwright.compare.failures import Failed, ask, attempt, reason
from trainwright.planning.worker import Worker


@pytest.mark.slow
def test_failures_bugs_and_death():
    with Worker(threads=1) as worker:
        assert ask(worker, os.getenv, "OMP_NUM_THREADS") == "1"
        with pytest.raises(Failed, match="division by zero"):
            ask(worker, operator.truediv, 1, 0)
        with pytest.raises(RuntimeError, match="KeyError"):
            ask(worker, operator.getitem, {}, "missing")
        with pytest.raises(Failed, match="was killed"):
            ask(worker, os.kill, ask(worker, os.getpid), signal.SIGKILL)
        assert ask(worker, operator.add, 1, 2) == 3, "a new process takes over"


def test_a_reason_is_one_line():
    assert reason(RuntimeError("the loss is nan\nand more")) == "the loss is nan"
    assert reason(MemoryError()) == "MemoryError"
    assert attempt(operator.add, (1, 2)) == (3, None) and attempt(operator.truediv, (1, 0)) == (
        None,
        "division by zero",
    )
