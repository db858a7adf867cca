"""vLLM as a sampler, against a stand-in that speaks its interface: what it is asked, and what is read."""
from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.align.test_rollout import SMALL, answers, context, steps
from trainwright.align.reward_head import RewardHead
from trainwright.align.rollout import Rollout
from trainwright.check import tiny
from trainwright.core.errors import UserError
from trainwright.lm import vllm_sampling
from trainwright.lm.generation import Prompt, sampled
from trainwright.lm.logprobs import token_logprobs


@dataclass(kw_only=True)
class SamplingParams:
    """The parameters that are used, under vLLM's names; another one is an error here as there."""

    n: int
    temperature: float
    top_p: float
    top_k: int
    min_p: float
    seed: int
    max_tokens: int
    logprobs: int
    stop_token_ids: list[int]
    detokenize: bool


@dataclass(kw_only=True)
class LLM:
    """Reads a checkpoint and answers as vLLM does: in the order of the prompts, the token that ends an answer
    included, a table of log-probabilities for each token."""

    model: str
    dtype: str
    logprobs_mode: str
    generation_config: str
    enable_prefix_caching: bool
    gpu_memory_utilization: float
    calls: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.loaded = AutoModelForCausalLM.from_pretrained(self.model)
        engines.append(self)

    def collective_rpc(self, method: str) -> None:
        assert method == "reload_weights"
        self.calls.append(method)
        self.loaded = AutoModelForCausalLM.from_pretrained(self.model)

    def generate(self, prompts: list[dict[str, list[int]]], sampling_params: list[SamplingParams], *,
                 use_tqdm: bool) -> list[Any]:
        out = []
        for prompt, how in zip(prompts, sampling_params, strict=True):
            assert (how.n, how.top_p, how.top_k, how.min_p, how.logprobs) == (1, 1.0, 0, 0.0, 0)
            asked = Prompt(prompt["prompt_token_ids"], how.max_tokens, how.seed, how.temperature)
            said = sampled(self.loaded, tiny.tokenizer(), [asked], context())[0]
            table = [{token: SimpleNamespace(logprob=logp)}
                     for token, logp in zip(said.ids, said.logp, strict=True)]
            out.append(SimpleNamespace(outputs=[SimpleNamespace(token_ids=tuple(said.ids), logprobs=table)]))
        return out


engines: list[LLM] = []


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    module: Any = ModuleType("vllm")
    module.LLM, module.SamplingParams = LLM, SamplingParams
    monkeypatch.setitem(sys.modules, "vllm", module)
    vllm_sampling._engine.cache_clear()
    engines.clear()
    yield
    vllm_sampling._engine.cache_clear()


def test_a_rollout_by_vllm_is_that_of_the_model(stand_in: None, tmp_path: Path) -> None:
    given: dict[str, Any] = SMALL | {"epochs": 1, "temperature": 0.8}
    ctx, plain = context(16), context(16)
    ctx.folder = tmp_path
    one = steps(Rollout(**given | {"sampler": "vllm"}), ctx, 1)[0]
    two = steps(Rollout(**given), plain, 1)[0]
    assert answers(one) == answers(two)
    torch.testing.assert_close(one["logp"], two["logp"], atol=1e-5, rtol=1e-5)
    (engine,) = engines
    assert (engine.dtype, engine.logprobs_mode, engine.generation_config, engine.enable_prefix_caching) == (
        "float32", "processed_logprobs", "vllm", False) and not engine.calls


def test_the_next_rollout_has_the_weights_of_then(stand_in: None, tmp_path: Path) -> None:
    model, tokenizer = tiny.model(), tiny.tokenizer()
    prompts = [Prompt([5, 6, 7], 4, seed, 1.0) for seed in range(3)]
    vllm_sampling.sampled_by_vllm(model, tokenizer, prompts, tmp_path)
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(1.5)
    said = vllm_sampling.sampled_by_vllm(model, tokenizer, prompts, tmp_path)
    (engine,) = engines
    assert engine.calls == ["reload_weights"]
    ids = torch.tensor([[5, 6, 7, *said[0].ids]])
    batch = {"input_ids": ids[:, :-1], "targets": ids[:, 1:].clone(),
             "position_ids": torch.arange(ids.shape[1] - 1)[None], "packed": False}
    batch["targets"][:, :2] = -100
    right = token_logprobs(model, batch).logp[0, 2:]
    torch.testing.assert_close(torch.tensor(said[0].logp), right.detach(), atol=1e-4, rtol=1e-4)


def test_what_it_refuses(stand_in: None, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny.model()
    RewardHead().operate(model, context())
    with pytest.raises(UserError, match="reads plain checkpoints, and reward is what a method has added"):
        vllm_sampling.check_vllm(model, "rollout")
    bare = SimpleNamespace(token_ids=(1, 2), logprobs=None)
    with pytest.raises(UserError, match="without the log-probabilities of its tokens"):
        vllm_sampling._read(bare)
    monkeypatch.setitem(sys.modules, "vllm", None)           # as where it is not installed
    with pytest.raises(UserError, match=r"needs vLLM, which is not installed: pip install 'train"):
        Rollout(**SMALL | {"sampler": "vllm"}).init(tiny.model(), context())
