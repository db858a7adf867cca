"""What libraries say: kept out of our output, cut to a sentence, and checked where it matters."""
from __future__ import annotations

import linecache
import logging
import re
import traceback
import warnings
from collections.abc import Iterable
from typing import Any

from trainwright.core.errors import UserError, suggest

PLAIN = (".json", ".jinja", ".model", ".txt", ".tiktoken", ".spm", ".codes", ".bpe", ".tokenizer", ".vocab")
"""Endings of the files that a checkpoint has beside its weights: configs, and what tokenizers read."""


def quiet() -> None:
    """Keep the bars, advice and errors of transformers and of the Hub's library, which are raised too, and
    the deprecations of libraries, out of our output."""
    from transformers.utils import logging as theirs
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"(transformers|peft)\.")
    theirs.set_verbosity(theirs.CRITICAL)
    theirs.disable_progress_bar()
    logging.getLogger("huggingface_hub").setLevel(logging.CRITICAL)


def first_line(error: Exception) -> str:
    """The first two lines of what a library says, as one."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:2]) if lines else type(error).__name__


def left_open(error: Exception, config: Any) -> str:
    """`` (model.NAME is left open: say it)`` for the first field of a config that is None on a line where an
    error arose, or nothing."""
    held = vars(config)
    for frame, line in traceback.walk_tb(error.__traceback__):
        text = linecache.getline(frame.f_code.co_filename, line)
        for name in re.findall(r"\b(?:config|self)\.(\w+)", text):
            if held.get(name, "") is None:
                return f" (model.{name} is left open: say it)"
    return ""


def near(word: str, among: Iterable[str]) -> str:
    """`` (did you mean 'x'?)`` where one of many words is near."""
    found = suggest(word, among)
    return found if "did you mean" in found else ""


def check_tensors(report: dict[str, Any], benign: Iterable[str], where: str) -> None:
    """Refuse a checkpoint whose tensors are not the model's, given transformers' report of loading it."""
    for key, words in (("missing_keys", "lacks"), ("unexpected_keys", "has, beside the model's own,"),
                       ("mismatched_keys", "has in another shape")):
        names = sorted(str(k[0]) if isinstance(k, tuple) else str(k) for k in report.get(key, ()))
        names = [n for n in names if not any(re.search(pattern, n) for pattern in benign)]
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            raise UserError(f"{where} {words} the tensors {', '.join(names[:3])}{more}: its config.json and "
                            "its weights are not of one model.")
    if failed := [line for line in (str(m) for m in report.get("error_msgs", ())) if line.strip()]:
        raise UserError(f"{where} cannot be read whole: {failed[0].strip()}")


def check_ties(plain: Any, model: Any, where: str) -> None:
    """Refuse a checkpoint that has two tensors where the model that its config
    describes (``plain``) has one."""
    apart = sorted(set(plain.all_tied_weights_keys) - set(model.all_tied_weights_keys))
    if apart:
        raise UserError(
            f"{where} has a {apart[0]} of its own, which its config.json ties to "
            f"{plain.all_tied_weights_keys[apart[0]]}: say tie_word_embeddings = false in it, or leave the "
            "tensor out."
        )
