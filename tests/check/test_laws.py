"""Methods that users write beside their recipes: each way to break a law is caught by that law."""
from __future__ import annotations

from pathlib import Path

import pytest

from trainwright.check import battery, laws_of_curate, tiny
from trainwright.check.laws import LAWS
from trainwright.check.subject import Subject

pytestmark = pytest.mark.slow

HEAD = '''"""What it does, in one line."""
import random
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn

from trainwright.core.claims import match
from trainwright.core.method import *
from trainwright.lm.losses import token_losses, trained_tokens


'''
SLOPE = '''class Mine(ScalingLaw):
    """A law whose fit does not look at the rows."""

    by: float = 2.0
    """A constant."""
    columns = ("tokens", "loss")

    def suggest(self, known):
        return {"batch_tokens": self.by * known["tokens"]}

    def fit(self, rows, ctx):
        law = Mine(HERE)
        return Fit(law, [Mine(by=law.by + 0.01 * i) for i in range(-5, 6)], {"error": 0.0}, [])

    def made_up(self, ctx):
        return [{"tokens": 1e6, "loss": 2.0}]
'''
BROKEN = {
    "it_defines_what_its_kinds_ask_for": {
        "it does not define count": '''class Mine(Objective):
    """."""

    def loss(self, model, batch, state, ctx):
        return token_losses(model, batch, ctx)
''',
        "it does not define suggest and fit and made_up": '''class Mine(ScalingLaw):
    """."""
''',
    },
    "state_is_legal": {
        "it changes the teacher (/model.embed_tokens.weight), which it may only read": '''class Mine(Update):
    """."""

    def settle(self, params, state, ctx):
        with torch.no_grad():
            ctx.frozen["teacher"].get_input_embeddings().weight.mul_(1.5)
''',
        "keeps count on itself": '''class Mine(Update):
    """."""

    def update(self, updates, params, state, ctx):
        object.__setattr__(self, "count", vars(self).get("count", 0) + 1)
        return updates
''',
        "is a tuple": '''class Mine(Update):
    """."""

    def init(self, model, ctx):
        return {"shared": {"pair": (1, 2)}}
''',
        "is a set": '''class Mine(Update):
    """."""

    def init(self, model, ctx):
        return {"shared": {"frozen": {"a", "b"}}}
''',
        "which is no parameter": '''class Mine(Evaluator):
    """."""

    def init(self, model, ctx):
        return {"param": {"lm_head.nothing": {}}}

    def measure(self, model, ctx):
        return {"one": 1.0}
''',
        "has the key 3": '''class Mine(Controller):
    """."""

    def init(self, model, ctx):
        return {"shared": {3: "three"}}

    def tick(self, view, state):
        return ()
''',
    },
    "two_resumes_are_exact": {
        "ends with other weights": '''class Mine(Update):
    """."""

    def update(self, updates, params, state, ctx):
        SEEN.append(len(SEEN))
        return {n: u * (1 + len(SEEN)) for n, u in updates.items()}


SEEN = []
''',
        "ends with other states": '''class Mine(Update):
    """."""

    def settle(self, params, state, ctx):
        state["shared"] = {"mean": 0.5 * MEAN[0] + float(ctx.step)}
        MEAN[0] = state["shared"]["mean"]


MEAN = [0.0]
''',
    },
    "randomness_is_derived": {
        "global generator of torch": '''class Mine(Update):
    """."""

    def update(self, updates, params, state, ctx):
        return {n: u * torch.rand(()) for n, u in updates.items()}
''',
        "global generator of random and numpy": '''class Mine(Data):
    """."""

    def next(self, pull, state, ctx):
        random.random()
        np.random.rand()
        return pull()
''',
    },
    "micro_batches_do_not_bend_it": {
        "has another gradient": '''class Mine(Objective):
    """."""

    def count(self, batch):
        return 1.0

    def loss(self, model, batch, state, ctx):
        return token_losses(model, batch, ctx) / trained_tokens(batch)
''',
        "micro-batches a step has": '''class Mine(Weigh):
    """."""

    def weigh(self, values, batch, state, ctx):
        return values / values.max()
''',
    },
    "claims_match": {
        "matches nothing": '''class Mine(Surgery):
    """."""

    def claims(self, model):
        return {"layers.*"}

    def operate(self, model, ctx):
        return None
'''
    },
    "off_it_changes_nothing": {
        "it should change nothing": '''class Mine(Weigh):
    """."""

    power: float = 1.0
    """Power of the loss that is the weight."""
    off: ClassVar[dict[str, Any] | None] = {"power": 0.1}

    def weigh(self, values, batch, state, ctx):
        return values ** self.power
'''
    },
    "settings_come_back": {
        "the setting strength has no docstring": '''class Mine(Update):
    """."""

    strength: float = 1.0
''',
        "do not come back": '''class Mine(Update):
    """."""

    names: dict[str, Any]
    """Names."""
    example: ClassVar[dict[str, Any]] = {"names": {"a": (1, 2)}}
''',
    },
    "params_limit_it": {
        "its state is wrong about": '''class Mine(Update):
    """."""

    def init(self, model, ctx):
        return {"param": {n: {"old": p.detach().clone()} for n, p in model.named_parameters()}}
''',
        "it changes /model.embed_tokens.weight": '''class Mine(Update):
    """."""

    def settle(self, params, state, ctx):
        for p in params.values():
            p.clamp_(-0.01, 0.01)
''',
    },
    "its_delta_comes_back": {
        "computes something else": '''class Mine(Surgery):
    """."""

    def operate(self, model, ctx):
        return None

    def save_delta(self, model, folder):
        folder.mkdir(parents=True)
        (folder / "nothing.txt").write_text("what was trained is not in here")

    def load_delta(self, model, folder):
        return None
'''
    },
    "it_starts_neutral": {
        "logits move": '''class Mine(Surgery):
    """."""

    def operate(self, model, ctx):
        with torch.no_grad():
            model.get_input_embeddings().weight.mul_(2)
'''
    },
    "it_changes_what_it_claims": {
        "which it does not claim": '''class Mine(Surgery):
    """."""

    neutral: ClassVar[bool] = False

    def operate(self, model, ctx):
        with torch.no_grad():
            model.get_input_embeddings().weight.mul_(2)
'''
    },
    "the_export_reloads": {
        "differs from the trained model": '''class Mine(Surgery):
    """."""

    def operate(self, model, ctx):
        for layer in model.model.layers if "model" in model._modules else model.transformer.h:
            layer.mlp.register_forward_hook(lambda module, given, out: 2 * out)
''',
        "mlp.up_proj.weight and": '''class Scaled(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner, self.scale = inner, nn.Parameter(torch.ones(()))

    def forward(self, x):
        return self.inner(x) * self.scale


class Mine(Surgery):
    """."""

    def operate(self, model, ctx):
        for layer in model.model.layers if "model" in model._modules else model.transformer.h:
            layer.mlp = Scaled(layer.mlp)
''',
    },
    "it_works_on_weights_in_bfloat16": {
        "must have the same dtype": '''class Added(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner, self.more = inner, nn.Linear(inner.in_features, inner.out_features)

    def forward(self, x):
        return self.inner(x) + self.more(x)


class Mine(Surgery):
    """."""

    neutral: ClassVar[bool] = False

    def operate(self, model, ctx):
        for layer in model.model.layers:
            layer.mlp.up_proj = Added(layer.mlp.up_proj)
'''
    },
    "it_runs_on_another_model": {
        "has no attribute 'model'": '''class Mine(Surgery):
    """."""

    def operate(self, model, ctx):
        model.model.layers
'''
    },
    "commands_are_claimed": {
        "sets the knob 'lr', which it does not claim": '''class Mine(Controller):
    """."""

    def tick(self, view, state):
        return [Set("lr", 0.5)]
'''
    },
    "measuring_moves_nothing": {
        "comes out differently": '''class Mine(Evaluator):
    """."""

    def measure(self, model, ctx):
        with torch.no_grad():
            next(model.parameters()).add_(1e-3)
        return {"one": 1.0}
''',
        "measured twice": '''class Mine(Evaluator):
    """."""

    def measure(self, model, ctx):
        TIMES.append(1)
        return {"times": float(len(TIMES))}


TIMES = []
''',
    },
    "equal_tensors_stay": {
        "it makes torch.float16": '''class Mine(Arithmetic):
    """."""

    def combine(self, name, tensors, base, ctx):
        return tensors[0].half()
''',
        "it makes another one": '''class Mine(Arithmetic):
    """."""

    def combine(self, name, tensors, base, ctx):
        return tensors[0] + tensors[1]
''',
        "it changes the tensors": '''class Mine(Arithmetic):
    """."""

    def combine(self, name, tensors, base, ctx):
        made = tensors[0].clone()
        tensors[1].mul_(2)
        return made
''',
    },
    "a_merge_is_the_same_twice": {
        "two merges of the same models differ": '''class Mine(Arithmetic):
    """."""

    def combine(self, name, tensors, base, ctx):
        return tensors[0] + torch.rand(())
'''
    },
    "pieces_make_the_whole": {
        "something else of a piece": '''class Mine(Arithmetic):
    """."""

    entrywise = True

    def combine(self, name, tensors, base, ctx):
        return base + (tensors[0] - base) * (tensors[0] > tensors[0].mean())
'''
    },
    "scores_stay_scores": {
        "it makes torch.float32 (2,)": '''class Mine(Decode):
    """."""

    def processor(self, model, ctx):
        return lambda tokens, scores: scores.max(-1).values
''',
        "no token to choose": '''class Mine(Decode):
    """."""

    def processor(self, model, ctx):
        return lambda tokens, scores: torch.full_like(scores, float("-inf"))
''',
        "not numbers": '''class Mine(Decode):
    """."""

    def processor(self, model, ctx):
        return lambda tokens, scores: scores * float("nan")
''',
        "the second time": '''class Mine(Decode):
    """."""

    def processor(self, model, ctx):
        return lambda tokens, scores: scores + torch.rand_like(scores)
''',
    },
    "rows_are_shaped_alone": {
        "changes the scores that it is given": '''class Mine(Decode):
    """."""

    def processor(self, model, ctx):
        return lambda tokens, scores: scores.mul_(2)
''',
        "another row stands beside it": '''class Mine(Decode):
    """."""

    def processor(self, model, ctx):
        return lambda tokens, scores: scores - scores.mean()
''',
    },
    "what_is_ruled_out_stays_out": {
        "it brings back tokens": '''class Mine(Decode):
    """."""

    def processor(self, model, ctx):
        return lambda tokens, scores: scores.nan_to_num(neginf=-50.0)
''',
        "it leaves none to choose": '''class Mine(Decode):
    """."""

    def processor(self, model, ctx):
        return lambda tokens, scores: scores.masked_fill(torch.arange(scores.shape[1]) % 3 == 0, -torch.inf)
''',
    },
    "rows_are_lawful": {
        "shifted already": '''class Mine(Data):
    """."""

    def next(self, pull, state, ctx):
        batch = pull()
        return batch | {"targets": torch.where(batch["targets"] == -100, -100, batch["input_ids"])}
''',
        "rows has": '''class Mine(Data):
    """."""

    def next(self, pull, state, ctx):
        return {n: t[:4] if torch.is_tensor(t) else t for n, t in pull().items()}
''',
    },
    "it_scores_units": {
        "rows come first": '''class Mine(Objective):
    """."""

    def count(self, batch):
        return trained_tokens(batch)

    def loss(self, model, batch, state, ctx):
        return token_losses(model, batch, ctx).sum()
''',
        "it counts": '''class Mine(Objective):
    """."""

    def count(self, batch):
        return float(len(batch["targets"]))

    def loss(self, model, batch, state, ctx):
        return token_losses(model, batch, ctx)
''',
    },
    "suggestions_are_settings": {
        "no setting of a recipe": '''class Mine(ScalingLaw):
    """."""

    def suggest(self, known):
        return {"adamw.learning_rate": 1.0}
''',
        "something else": '''class Mine(ScalingLaw):
    """."""

    def suggest(self, known):
        TIMES.append(1)
        return {"batch_tokens": len(TIMES)}


TIMES = []
''',
        "adamw.lr = -0.1": '''class Mine(ScalingLaw):
    """."""

    def suggest(self, known):
        return {"adamw.lr": -0.1}
''',
    },
    "a_fit_finds_the_law_again": {
        "give it an interval": SLOPE.replace("HERE", "by=self.by + 1.0"),
        "nobody knows how sure": SLOPE.replace("HERE", "by=self.by").replace("0.01 * i", "0.0"),
        "must be numbers": SLOPE.replace("HERE", "by=self.by").replace('{"error": 0.0}', "{}"),
        "a single row is enough": SLOPE.replace("HERE", "by=self.by"),
    },
}
CASES = [(law, words, text) for law, ways in BROKEN.items() for words, text in ways.items()]


@pytest.mark.parametrize(
    ("law", "words", "text"), CASES, ids=[f"{law}-{words}".replace(" ", "_") for law, words, _ in CASES]
)
def test_a_broken_method_is_caught(law: str, words: str, text: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(HEAD + text)
    (found,) = [one for one in LAWS if one.name == law]
    assert words in battery.problem(found, Subject(str(file), tmp_path))
    tiny._frozen.cache_clear()                              # one of them changes what it may only read


def test_every_law_has_been_broken() -> None:
    assert set(BROKEN) == {law.name for law in LAWS if law.check.__module__ != laws_of_curate.__name__}
