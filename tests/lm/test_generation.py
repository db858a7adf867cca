"""Text depends on its prompt, its seed and the decoding methods alone; it is what
transformers would write."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from trainwright import families
from trainwright.check import tiny
from trainwright.core import sharding
from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.core.method import Decode
from trainwright.corpus import bpe
from trainwright.evaluate.decode.min_p import MinP
from trainwright.evaluate.decode.nucleus import Nucleus
from trainwright.lm.generation import Prompt, drawn, generate, sampled, written


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def model(request: pytest.FixtureRequest) -> Any:
    """A tiny model whose logits are far apart."""
    made = tiny.model(request.param, 3)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.mul_(4)
    return made


def prompts(temperature: float = 0.8, new_tokens: int = 20) -> list[Prompt]:
    texts = ("the old farmer", "def walk", "x", "please tell me how many apples are left", "rain falls")
    return [Prompt(tiny.tokenizer()(text)["input_ids"], new_tokens, i, temperature)
            for i, text in enumerate(texts)]


def by_transformers(model: Any, prompt: Prompt, **how: Any) -> list[int]:
    """What transformers' own sampling writes, one prompt at a time."""
    ids = torch.tensor([list(prompt.ids)])
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(prompt.seed)
        made = model.eval().generate(input_ids=ids, attention_mask=torch.ones_like(ids), pad_token_id=0,
                                     max_new_tokens=prompt.new_tokens, temperature=prompt.temperature,
                                     do_sample=True, **how)
    return made[0, ids.shape[1]:].tolist()  # type: ignore[no-any-return]


def test_draws_follow_the_softmax() -> None:
    scores = torch.tensor([[0.0, 1.0, 2.0, -torch.inf]]).repeat(4000, 1)
    draws = [torch.Generator().manual_seed(i) for i in range(4000)]
    share = drawn(scores, draws, torch.ones(4000).bool()).argmax(1).bincount(minlength=4) / 4000
    assert (share - scores[0].softmax(0)).abs().max() < 0.03, "about four standard errors"
    assert drawn(scores[:9], draws[:9], torch.zeros(9).bool()).argmax(1).tolist() == [2] * 9


def test_a_draw_is_that_of_multinomial() -> None:
    scores = torch.randn(50, 1000, generator=torch.Generator().manual_seed(0))
    draws = [torch.Generator().manual_seed(i) for i in range(50)]
    theirs = [int(torch.multinomial(row.softmax(-1)[None], 1, generator=torch.Generator().manual_seed(i)))
              for i, row in enumerate(scores)]
    assert drawn(scores, draws, torch.ones(50).bool()).argmax(1).tolist() == theirs


@pytest.mark.slow
@pytest.mark.parametrize(("decode", "how"), [
    ((), {}), ((Nucleus(p=0.7),), {"top_k": 0, "top_p": 0.7}), ((MinP(p=0.2),), {"top_k": 0, "min_p": 0.2}),
    ((Nucleus(p=0.9), MinP(p=0.1)), {"top_k": 0, "top_p": 0.9, "min_p": 0.1})])
def test_it_writes_what_transformers_writes(model: Any, decode: tuple[Decode, ...],
                                            how: dict[str, Any]) -> None:
    for temperature in (0.8, 1.0, 1.5):
        asked = prompts(temperature)
        said = written(model, tiny.tokenizer(), asked, Context(decode=decode))
        assert said == [by_transformers(model, one, **how) for one in asked]


@pytest.mark.slow
def test_a_text_depends_on_its_prompt_and_seed_alone(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = [*prompts(), *prompts(0.0), *prompts(1.3, new_tokens=7)]
    ctx = Context(decode=(Nucleus(p=0.9),))
    alone = [written(model, tiny.tokenizer(), [one], ctx)[0] for one in asked]
    assert max(map(len, alone)) == 20 and len({tuple(ids) for ids in alone}) > 10
    for size in (2, 4, 64):
        assert written(model, tiny.tokenizer(), asked, ctx, batch_size=size) == alone
    monkeypatch.setattr(sharding, "rank", lambda: 1)
    assert written(model, tiny.tokenizer(), asked[::-1], ctx) == alone[::-1]
    assert written(model, tiny.tokenizer(), [], ctx) == []


def test_what_is_sampled_has_the_log_probabilities_of_all_that_might_be(model: Any) -> None:
    asked, tokenizer = prompts(1.3), tiny.tokenizer()
    found = sampled(model, tokenizer, asked, Context(decode=(Nucleus(p=0.1),)), batch_size=2)
    assert len({tuple(one.ids) for one in found}) == len(asked)
    for prompt, one in zip(asked, found, strict=True):
        with torch.no_grad():
            whole = model(input_ids=torch.tensor([[*prompt.ids, *one.ids]])).logits[0]
        scores = whole[len(prompt.ids) - 1:-1]
        right = (scores / 1.3).log_softmax(-1).gather(1, torch.tensor(one.ids)[:, None])[:, 0]
        torch.testing.assert_close(torch.tensor(one.logp), right, atol=1e-4, rtol=1e-4)


class Only(Decode):
    """Leaves two tokens."""

    first: int
    """One of them, and the one after it is the other."""

    def processor(self, model: nn.Module, ctx: Context) -> Callable[[Tensor, Tensor], Tensor]:
        def only(tokens: Tensor, scores: Tensor) -> Tensor:
            left = torch.full_like(scores, -torch.inf)
            left[:, self.first:self.first + 2] = scores[:, self.first:self.first + 2]
            return left
        return only


def test_decoding_methods_are_a_chain(model: Any) -> None:
    for temperature in (0.0, 1.0):
        asked = prompts(temperature)
        two = written(model, tiny.tokenizer(), asked, Context(decode=(Only(first=70),)))
        assert {n for ids in two for n in ids} == {70, 71}
        one = written(model, tiny.tokenizer(), asked, Context(decode=(Only(first=70), Only(first=71))))
        assert {n for ids in one for n in ids} == {71}


def test_without_a_method_the_generation_config_holds(model: Any) -> None:
    likeliest = written(model, tiny.tokenizer(), prompts(0.0), Context())
    before = model.generation_config.top_k
    model.generation_config.top_k = 1
    try:
        assert written(model, tiny.tokenizer(), prompts(5.0), Context()) == likeliest
        wide = written(model, tiny.tokenizer(), prompts(5.0), Context(decode=(Nucleus(p=1.0),)))
        assert wide != likeliest, "a method that is named takes its place"
        assert written(model, tiny.tokenizer(), prompts(5.0), Context(), top_k=0) == wide
    finally:
        model.generation_config.top_k = before


def test_the_generation_config_shapes_nothing_but_where_nobody_says_otherwise(model: Any) -> None:
    """Many models name a penalty, or tokens to keep out; what is measured and learned from is the model."""
    def said() -> list[Any]:
        return [written(model, tiny.tokenizer(), prompts(0.0), Context()),
                written(model, tiny.tokenizer(), prompts(), Context(decode=(Nucleus(p=1.0),))),
                sampled(model, tiny.tokenizer(), prompts(), Context())]
    alone, before = said(), model.generation_config
    model.generation_config = copy.deepcopy(before)
    strange = {"repetition_penalty": 50.0, "suppress_tokens": [*range(80)], "no_repeat_ngram_size": 1,
               "num_return_sequences": 3, "min_new_tokens": 20, "max_length": 1, "stop_strings": ["a"]}
    for name, value in strange.items():
        setattr(model.generation_config, name, value)
    try:
        assert said() == alone
        for once in written(model, tiny.tokenizer(), prompts(), Context()):
            assert len(set(once)) == len(once), "nothing is written twice where the config has its way"
        model.generation_config.top_k = -1
        with pytest.raises(UserError, match="generation config has top_k = -1, which it cannot be"):
            written(model, tiny.tokenizer(), prompts(), Context())
    finally:
        model.generation_config = before


def test_a_text_ends_with_its_last_token(model: Any) -> None:
    said = written(model, tiny.tokenizer(), prompts(0.0), Context())
    before, ends = model.generation_config.eos_token_id, said[0][3]
    model.generation_config.eos_token_id = ends
    try:
        for ids, ended in zip(said, written(model, tiny.tokenizer(), prompts(0.0), Context()), strict=True):
            assert ended == (ids[:ids.index(ends) + 1] if ends in ids else ids)
    finally:
        model.generation_config.eos_token_id = before


@pytest.mark.slow
def test_models_of_encoder_and_decoder_write_from_the_beginning() -> None:
    table = {"type": "bart", "d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 32,
             "decoder_ffn_dim": 32, "encoder_attention_heads": 2, "decoder_attention_heads": 2,
             "max_position_embeddings": 64, "dropout": 0.0}
    config = families.from_table(table, tiny.tokenizer(), "here")
    made: Any = families.create(config, 0, "here")
    asked = prompts(1.0)
    alone = [written(made, tiny.tokenizer(), [one], Context())[0] for one in asked]
    assert written(made, tiny.tokenizer(), asked, Context()) == alone and max(map(len, alone)) == 20


# ---- the command ------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tokenizer = bpe.train(["the sea the ship the rain"] * 3, 300)
    config = families.from_table({"type": "gpt2", "n_embd": 16, "n_layer": 1, "n_head": 2,
                                  "n_positions": 64}, tokenizer, "here")
    families.save(families.create(config, 0, "here"), tmp_path, tokenizer)
    return tmp_path


def test_sampling_depends_on_the_seed_alone(folder: Path) -> None:
    said = [generate(folder, "the sea", 8, 0.8, False, seed) for seed in (1, 1, 2)]
    assert said[0] == said[1] != said[2] and said[0].startswith("the sea")
    likeliest = generate(folder, "the sea", 8, 0.0, False, 1)
    assert likeliest == generate(folder, "the sea", 8, 0.0, False, 2)
    assert likeliest == generate(folder, "the sea", 8, 0.8, False, 1, (MinP(p=1.0),)) != said[0]


@pytest.mark.parametrize(
    ("prompt", "tokens", "temperature", "chat", "sentence"),
    [
        ("hello", 8, 0.8, True, "no chat template; leave out --chat"),
        ("hello", 0, 0.8, False, "tokens must be 1"),
        ("hello", 8, -1.0, False, "temperature must be 0 or more"),
        ("hello", 10**30, 0.8, False, "at most 1,000,000, not 1000000"),
        ("hello", 8, float("nan"), False, "temperature must"),
        (
            "hello",
            8,
            1e-300,
            False,
            "must be 0, which takes the likeliest token, or from 1e-06 to 1e\\+06, not 1e-300",
        ),
        ("the sea " * 40, 8, 0.8, False, "leaves no room in the 64 positions"),
    ],
)
def test_what_cannot_be_is_one_sentence(folder: Path, prompt: str, tokens: int, temperature: float,
                                        chat: bool, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        generate(folder, prompt, tokens, temperature, chat, 0)


@pytest.mark.parametrize("temperature", (0.0, 0.8))
def test_scores_that_are_no_numbers_are_one_sentence(folder: Path, temperature: float) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["transformer.ln_f.weight"][0] = float("nan")
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(
        UserError, match=r"no numbers \(NaN\) as scores of the next token: its weights are damaged"
    ):
        generate(folder, "the sea", 8, temperature, False, 0)


@pytest.mark.parametrize("temperature", (1e-6, 1e6))
def test_the_coldest_and_the_hottest_texts(folder: Path, temperature: float) -> None:
    said = generate(folder, "the sea", 8, temperature, False, 0)
    assert (said == generate(folder, "the sea", 8, 0.0, False, 0)) == (temperature < 1)


def test_a_prompt_does_not_end_with_what_its_tokenizer_puts_behind_a_text(folder: Path) -> None:
    before = generate(folder, "the sea", 8, 0.0, False, 0)
    held = json.loads((folder / "tokenizer.json").read_text())
    one = held["post_processor"]["single"]
    held["post_processor"]["single"] = [*one, {"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}}]
    (folder / "tokenizer.json").write_text(json.dumps(held))
    assert families.load_tokenizer(folder, "")("x")["input_ids"][-1] == 0
    assert generate(folder, "the sea", 8, 0.0, False, 0) == before
