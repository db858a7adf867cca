"""What may go wrong in a run without being wrong with the comparison: a result of its arm, with a reason."""
from __future__ import annotations

from collections.abc import Callable
from typing import Any

from trainwright.core.errors import UserError
from trainwright.planning.worker import Died, Worker

FAILURES = (UserError, MemoryError, ArithmeticError, RuntimeError)
"""A loss that is no number, too little memory, a shape that a method cannot take (RuntimeErrors of torch)."""


class Failed(Exception):
    """A run in another process failed; the message is the reason, for people."""


def reason(error: BaseException) -> str:
    """Why a run failed, in one line."""
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0]


def ask(worker: Worker, function: Callable[..., Any], *arguments: Any) -> Any:
    """What the function returns in the worker.

    Raises:
        Failed: what went wrong there is one of FAILURES, or the process was killed.
        RuntimeError: a bug there, with its traceback.
    """
    begin(worker, function, *arguments)
    return answer(worker)


def begin(worker: Worker, function: Callable[..., Any], *arguments: Any) -> None:
    """The same without waiting: ``answer`` returns it."""
    worker.begin(attempt, function, arguments)


def answer(worker: Worker) -> Any:
    """The result of what was begun; raises what ``ask`` raises."""
    try:
        what, why = worker.answer()
    except Died as error:
        raise Failed(f"its process was killed ({error}), most likely for lack of memory") from None
    if why is not None:
        raise Failed(why)
    return what


def attempt(function: Callable[..., Any], arguments: tuple[Any, ...]) -> tuple[Any, str | None]:
    """In the worker: the answer, or the reason why there is none."""
    try:
        return function(*arguments), None
    except FAILURES as error:
        return None, reason(error)
