"""Sampling by vLLM, behind the protocol of ``generation.sampled``: token ids in, token ids and their
log-probabilities out. Needs the extra ``vllm`` and a device that it runs on.

    said = sampled_by_vllm(model, tokenizer, [Prompt(ids, new_tokens=40, seed=seed, temperature=0.8)], folder)

The weights of now are written to a folder, from which the engine of this process reads them: when it starts,
and again each time (``reload_weights``). Each prompt has a seed of its own and the temperature alone shapes
what is drawn; log-probabilities are asked for as they are after the temperature (``processed_logprobs``), not
those of the raw scores, which is vLLM's default. Kept keys and values of the old weights are never used
again (no prefix caching). Its kernels round otherwise than the model in training, and not alike in batches of
other sizes: so the text may depend on the prompts beside it, and what was interrupted may go on differently.
"""
from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from trainwright.core import sharding
from trainwright.core.errors import UserError
from trainwright.lm.generation import Prompt, Sampled
from trainwright.lm.layers import Carrier


def check_vllm(model: nn.Module, who: str) -> None:
    """Refuse, before the first step, what vLLM cannot sample from.

    Raises:
        UserError: it is not installed, the stage has several ranks, or the model has adapters or heads.
    """
    try:
        import vllm  # noqa: F401
    except ImportError:
        raise UserError(f"{who}: sampler = \"vllm\" needs vLLM, which is not installed: pip install "
                        "'trainwright[vllm]', or leave sampler out.") from None
    if sharding.world() > 1:
        raise UserError(f"{who}: sampler = \"vllm\" works on one rank, and the stage has {sharding.world()}.")
    if added := next((n for n, m in model.named_modules() if isinstance(m, Carrier)), ""):
        raise UserError(f"{who}: sampler = \"vllm\" reads plain checkpoints, and {added} is what a method "
                        "has added to the model: leave sampler out.")


def sampled_by_vllm(model: Any, tokenizer: Any, prompts: Sequence[Prompt], folder: Path) -> list[Sampled]:
    """What ``generation.sampled`` returns, drawn by vLLM.

    Args:
        folder: scratch for the weights; one folder has one engine in a process.

    Raises:
        UserError: an answer without its log-probabilities.
    """
    from vllm import SamplingParams
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    before = _engine.cache_info().misses
    engine = _engine(folder, str(next(model.parameters()).dtype).removeprefix("torch."))
    if _engine.cache_info().misses == before:
        engine.collective_rpc("reload_weights")
    end = model.generation_config.eos_token_id
    end = tokenizer.eos_token_id if end is None else end
    ends = [end] if isinstance(end, int) else list(end or ())
    how = [SamplingParams(n=1, temperature=p.temperature, top_p=1.0, top_k=0, min_p=0.0, seed=p.seed,
                          max_tokens=p.new_tokens, logprobs=0, stop_token_ids=ends, detokenize=False)
           for p in prompts]
    given = [{"prompt_token_ids": list(p.ids)} for p in prompts]
    return [_read(one.outputs[0]) for one in engine.generate(given, how, use_tqdm=False)]


@lru_cache(maxsize=1)
def _engine(folder: Path, dtype: str) -> Any:
    from vllm import LLM
    return LLM(model=str(folder), dtype=dtype, logprobs_mode="processed_logprobs", generation_config="vllm",
               enable_prefix_caching=False, gpu_memory_utilization=0.4 if torch.cuda.is_available() else 0.9)


def _read(said: Any) -> Sampled:
    ids = list(said.token_ids)
    told = said.logprobs or []
    if len(told) != len(ids) or any(token not in at for token, at in zip(ids, told, strict=False)):
        raise UserError("vLLM gave an answer without the log-probabilities of its tokens: is this a version "
                        "before 0.10?")
    return Sampled(ids, [float(at[token].logprob) for token, at in zip(ids, told, strict=True)])
