"""Golden and proxy: the divergence of whole answers by hand, 0 from itself, and the same draws for all."""
from __future__ import annotations

import itertools
import math
from pathlib import Path

import pytest
import torch

from trainwright import families
from trainwright.check import tiny
from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.evaluate.teacher_hacking import TeacherHacking


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("models")
    for role, seed in (("teacher", 1), ("oracle", 2)):
        families.save(tiny.model(seed=seed), place / role, tiny.tokenizer())
    return {role: place / role for role in ("teacher", "oracle")}


def context(saved: dict[str, Path]) -> Context:
    ctx = tiny.context(tiny.place())
    ctx.frozen = {}
    ctx.inputs = ctx.inputs | {role: [folder] for role, folder in saved.items()}
    ctx.tokenizer = tiny.tokenizer()
    return ctx


def test_from_itself_a_model_is_nothing_away(saved: dict[str, Path]) -> None:
    ctx, method = context(saved), TeacherHacking(prompts=6, prompt=3, new_tokens=4)
    teacher, oracle = (method.measure(tiny.model(seed=seed).eval(), ctx) for seed in (1, 2))
    assert abs(teacher["teacher_hacking/proxy"]) < 1e-5 and abs(oracle["teacher_hacking/golden"]) < 1e-5
    assert teacher["teacher_hacking/golden"] == pytest.approx(teacher["teacher_hacking/teacher"], rel=1e-5)
    assert teacher["teacher_hacking/teacher"] == oracle["teacher_hacking/teacher"] > 0.01
    assert oracle["teacher_hacking/proxy_se"] > 0


@torch.no_grad()
def test_the_sum_over_tokens_is_the_divergence_of_whole_answers(saved: dict[str, Path]) -> None:
    """Of answers of two tokens of all that there are: the mean over samples comes near to the sum."""
    ctx, student = context(saved), tiny.model(seed=3).eval()
    method = TeacherHacking(prompts=1, prompt=3, new_tokens=2)
    prompt = method._prompts(ctx)[0]
    method = TeacherHacking(prompts=256, prompt=3, new_tokens=2, batch_size=256)
    oracle = families.load(saved["oracle"], "test").eval()
    object.__setattr__(method, "_prompts", lambda ctx: [prompt] * 256)
    found = method.measure(student, ctx)
    words, ends = oracle.get_input_embeddings().num_embeddings, oracle.generation_config.eos_token_id
    ids = torch.tensor([[*prompt, w] for w in range(words)])
    log_p, log_q = (m(input_ids=ids).logits.log_softmax(-1).double() for m in (oracle, student))
    exact = 0.0
    for first, second in itertools.product(range(words), range(words)):
        p, q = float(log_p[0, 2, first]), float(log_q[0, 2, first])
        more = (0.0, 0.0) if first == ends else (float(log_p[first, 3, second]),
                                                 float(log_q[first, 3, second]))
        weight = math.exp(p + more[0]) / (words if first == ends else 1)
        exact += weight * (p + more[0] - q - more[1])
    assert found["teacher_hacking/golden"] == pytest.approx(exact, abs=4 * found["teacher_hacking/golden_se"])


def test_another_vocabulary_is_refused(saved: dict[str, Path]) -> None:
    ctx = context(saved)
    ctx.tokenizer = None
    small = tiny.model()
    small.resize_token_embeddings(50)
    with pytest.raises(UserError, match="the teacher has another vocabulary"):
        TeacherHacking().measure(small, ctx)
