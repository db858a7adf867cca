"""A process that takes orders: its failures are told, its death is not ours."""
import math
import operator
import os
import signal

import pytest

from trainwright.compare.worker import Failed, Worker, answer, reason
from trainwright.core.errors import UserError


def test_orders_failures_and_bugs():
    worker = Worker(threads=1)
    try:
        assert worker.ask(math.hypot, 3.0, 4.0) == 5.0
        with pytest.raises(Failed, match="division by zero"):
            worker.ask(operator.truediv, 1, 0)
        with pytest.raises(RuntimeError, match="KeyError"):
            worker.ask(operator.getitem, {}, "missing")
        assert worker.ask(os.getenv, "OMP_NUM_THREADS") == "1"
        print_does_not_mix = worker.ask(print, "something that a library says")
        assert print_does_not_mix is None
    finally:
        worker.close()
    assert worker.process.poll() is not None


def test_a_worker_that_is_killed_is_a_failure_of_its_work():
    worker = Worker()
    try:
        with pytest.raises(Failed, match="signal 9"):
            worker.ask(os.kill, worker.process.pid, signal.SIGKILL)
    finally:
        worker.close()


def test_an_interrupt_is_passed_on():
    worker = Worker()
    try:
        with pytest.raises(KeyboardInterrupt):
            worker.ask(os.kill, worker.process.pid, signal.SIGINT)
    finally:
        worker.close()


def test_a_reason_is_one_line():
    assert reason(UserError("the loss is nan\nand more")) == "the loss is nan"
    assert reason(MemoryError()) == "MemoryError"
    assert answer(math.sqrt, (-1.0,))[0] == "broken" and answer(int, (2,)) == ("done", 2)
