"""Rows of a batch that are replaced by others: what they consist of, and which batches have such rows."""
from __future__ import annotations

from trainwright.core.errors import UserError
from trainwright.core.method import Batch

REPLACED = ("input_ids", "targets", "position_ids", "document", "address")
"""What a row of a batch consists of, beside its domain."""


def check_rows(batch: Batch, who: str) -> None:
    """Refuse batches whose rows consist of something else.

    Raises:
        UserError: it is no batch of rows of tokens as ``pack`` makes them.
    """
    missing = [name for name in REPLACED[:4] if name not in batch]
    if missing or "attention_mask" in batch or "prefix" in batch:
        why = f"has no {', '.join(missing)}" if missing else "has rows of another kind"
        raise UserError(f"{who} replaces rows of tokens, and the batch {why}: put it right behind pack.")
