"""A recipe to begin with follows from the data and the model, is read as run reads it, and runs as it is."""

from __future__ import annotations

import json
import shlex
import tomllib
from pathlib import Path
from typing import Any

import pytest

from trainwright import families
from trainwright.compare.spec import load as load_comparison
from trainwright.core.errors import UserError
from trainwright.core.recipe import load
from trainwright.core.registry import cards
from trainwright.core.shown import plain
from trainwright.corpus import bpe
from trainwright.life.run import run
from trainwright.planning import start
from trainwright.planning.templates import templates
from trainwright.storage.store import Store

TINY = {"type": "llama", "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1,
        "num_attention_heads": 2, "max_position_embeddings": 128}
UNMARKED = ("{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' "
            "}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}")
ASKED = [f"what is {i} and {i + 1}" for i in range(60)]


def chats(file: Path) -> str:
    rows = [{"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": f"it is {q[8:]}"}]}
            for q in ASKED]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


def texts(file: Path) -> str:
    file.write_text("".join(json.dumps({"text": q * 20}) + "\n" for q in ASKED))
    return str(file)


@pytest.fixture
def model(tmp_path: Path) -> str:
    """A small checkpoint, whose chat template does not mark what the assistant says."""
    tokenizer = bpe.train(["user assistant system it", *ASKED], 320, ["<|im_start|>", "<|im_end|>"])
    tokenizer.chat_template = UNMARKED
    made = families.create(families.from_table(TINY, tokenizer, "here"), 0, "here")
    families.save(made, tmp_path / "model", tokenizer)
    return str(tmp_path / "model")


def written(tmp_path: Path, name: str, model: str | None, data: str) -> tuple[dict[str, Any], list[str]]:
    said = start.write(name, model, data, tmp_path / f"{name}.toml", Store(tmp_path / "store"))
    return tomllib.loads((tmp_path / f"{name}.toml").read_text()), said


@pytest.mark.slow
def test_a_model_is_tuned_on_chats_as_they_are(tmp_path: Path, model: str) -> None:
    made, said = written(tmp_path, "chat", model, chats(tmp_path / "mine.jsonl"))
    corpus, tuned, judge = made["stage"]
    assert corpus["chat_template"] == "by_turn" and corpus["methods"][0]["paths"] == ["mine.jsonl"]
    assert corpus["tokenizer"] == "model" and judge["from"]["models"] == ["model", "tuned"]
    length = tuned["methods"][0]["length"]
    assert length == 128, "not more than the model has positions"
    assert tuned["tokens"] >= start.LEAST * tuned["batch_tokens"] and tuned["batch_tokens"] % length == 0
    assert "60 conversations" in said[0] and "a row of 128 tokens holds 100% of" in said[1].lower()


def test_documents_are_gone_on_with_and_compared(tmp_path: Path, model: str) -> None:
    data = texts(tmp_path / "mine.jsonl")
    made, _ = written(tmp_path, "continue", model, data)
    assert "next_token" in [m["use"] for m in made["stage"][1]["methods"]]
    made, _ = written(tmp_path, "compare", model, data)
    assert made["compare"]["metric"] == "loss/mine" and "chat_template" not in made["stage"][0]
    assert load_comparison(tmp_path / "compare.toml").settings.stage == "tuned"
    assert made["compare"]["baseline"] == made["arm"][0]["name"]
    assert made["compare"]["budget"]["tokens"] == made["stage"][1]["tokens"]


@pytest.mark.slow
def test_what_is_written_runs(tmp_path: Path, model: str) -> None:
    written(tmp_path, "chat", model, chats(tmp_path / "mine.jsonl"))
    written(tmp_path, "curate", None, texts(tmp_path / "texts.jsonl"))
    store = Store(tmp_path / "store")
    done = run(load(tmp_path / "chat.toml"), store)
    assert done["tuned"].figures["steps"] >= start.LEAST
    numbers = done["judge"].figures["numbers"]
    assert numbers["tuned"]["loss/mine"] < numbers["model"]["loss/mine"]
    assert run(load(tmp_path / "curate.toml"), store)["corpus"].figures


@pytest.mark.slow
def test_a_recipe_for_preferences_runs(tmp_path: Path, model: str) -> None:
    rows = [{"prompt": [{"role": "user", "content": q}],
             "chosen": [{"role": "assistant", "content": "it is"}],
             "rejected": [{"role": "assistant", "content": "no"}]} for q in ASKED]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    made, said = written(tmp_path, "prefer", model, str(tmp_path / "pairs.jsonl"))
    assert made["stage"][0]["chat_template"] == "by_turn" and "60 pairs" in said[0]
    done = run(load(tmp_path / "prefer.toml"), Store(tmp_path / "store"))
    assert done["preferred"].figures["steps"] == made["stage"][1]["steps"] >= start.LEAST
    found = done["judge"].figures["numbers"]
    assert len(found) == 2 and found["preferred"]["preference_margin"] > found["model"]["preference_margin"]
    assert all(one["preference_pairs"] > 0 for one in found.values())


def test_without_a_model_a_corpus_trains_its_tokenizer(tmp_path: Path) -> None:
    made, said = written(tmp_path, "curate", None, texts(tmp_path / "mine.jsonl"))
    assert made["stage"][0]["vocab_size"] == start.WORDS and said[0].startswith("data: 60 documents")


def test_a_tokenizer_without_a_template_gets_chatml_and_says_so(tmp_path: Path, model: str) -> None:
    (Path(model) / "chat_template.jinja").unlink()
    made, said = written(tmp_path, "chat", model, chats(tmp_path / "mine.jsonl"))
    assert made["stage"][0]["chat_template"] == "chatml"
    assert "template: chatml, since the tokenizer has no chat template" in said


def test_names_with_signs_of_toml_are_written_whole(tmp_path: Path, model: str) -> None:
    folder = tmp_path / 'a "b" \\c $d'
    folder.mkdir()
    made, _ = written(tmp_path, "continue", model, texts(folder / "über uns.jsonl"))
    assert made["stage"][0]["methods"][0]["paths"] == ['a "b" \\c $d/über uns.jsonl']


EVIL = 'x"\\\n[[stage]]\nuse = "evil.py" $(touch ran) \x1b[31m'


def test_what_data_and_names_hold_is_text_in_recipes_and_commands(tmp_path: Path, model: str) -> None:
    """The data are a stranger's: neither the recipe nor a command that stands in it does what they say."""
    strange = tmp_path / 'a "b" \\c'
    Path(model).rename(strange)
    file = tmp_path / f"{EVIL}.jsonl"
    rows = [{"messages": [{"role": "user", "content": EVIL}, {"role": "assistant", "content": "no"}]}] * 40
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name in ("chat", "compare"):
        made, _ = written(tmp_path, name, str(strange), str(file))
        assert made["title"].endswith(EVIL) and made["stage"][0]["tokenizer"] == strange.name
        assert {m["use"] for s in made["stage"] for m in s["methods"]} < {c.name for c in cards().values()}
    assert made["compare"]["metric"] == f"loss/{EVIL}"
    text = (tmp_path / "chat.toml").read_text()
    (command,) = [line for line in text.splitlines() if "--prompt" in line]
    assert shlex.split(command.lstrip("# "))[-1] == plain(" ".join(EVIL.split())) and "\x1b" not in text


@pytest.mark.parametrize("messages", [
    [{"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]}],
    [{"role": "system", "content": "Be brief."}, {"role": "assistant", "content": "yes"}]])
def test_chats_in_which_no_user_speaks(tmp_path: Path, model: str, messages: list[dict[str, Any]]) -> None:
    file = tmp_path / "mine.jsonl"
    file.write_text((json.dumps({"messages": messages}) + "\n") * 40)
    (Path(model) / "chat_template.jinja").unlink()
    made, _ = written(tmp_path, "chat", model, str(file))
    asked = made["stage"][1]["methods"][-1]["prompts"]
    assert asked == ["Be brief." if len(messages) > 1 else ""]


@pytest.mark.parametrize(("name", "words"), [
    ("chats", "no template 'chats' (did you mean 'chat'?)"),
    ("chat", "holds documents, and 'chat' needs conversations; try continue"),
    ("prefer", "needs pairs of a better and a worse answer"),
])
def test_what_does_not_fit_is_said(tmp_path: Path, model: str, name: str, words: str) -> None:
    with pytest.raises(UserError) as told:
        written(tmp_path, name, model, texts(tmp_path / "mine.jsonl"))
    assert words in str(told.value) and not (tmp_path / f"{name}.toml").exists()


def test_nothing_is_written_over_and_no_model_is_guessed(tmp_path: Path, model: str) -> None:
    data = texts(tmp_path / "mine.jsonl")
    (tmp_path / "continue.toml").write_text("mine")
    with pytest.raises(UserError, match="is there already"):
        written(tmp_path, "continue", model, data)
    assert (tmp_path / "continue.toml").read_text() == "mine"
    with pytest.raises(UserError, match="needs a model"):
        written(tmp_path, "chat", None, data)


def test_columns_of_other_names_are_named(tmp_path: Path, model: str) -> None:
    file = tmp_path / "own.csv"
    file.write_text("frage,antwort\n" + "".join(f"Say {i},It is {i}.\n" for i in range(30)))
    out, store = tmp_path / "own.toml", Store(tmp_path / "store")
    with pytest.raises(UserError, match=r"there is no column 'text'.*init: --columns"):
        start.write("chat", model, str(file), out, store)
    with pytest.raises(UserError, match=r"--columns: frage is no list such as prompt=question,answer=reply"):
        start.write("chat", model, str(file), out, store, "frage")
    start.write("chat", model, str(file), out, store, "prompt=frage, answer=antwort")
    [text] = tomllib.loads(out.read_text())["stage"][0]["methods"]
    assert text["columns"] == {"prompt": "frage", "answer": "antwort"}


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "mine.jsonl").write_text('{"text": "a"}\n{"text": ')
    with pytest.raises(UserError, match=r"mine\.jsonl, line 2: this is no JSON object"):
        written(tmp_path, "curate", None, str(tmp_path / "mine.jsonl"))


def test_chats_and_documents_in_one_file_are_refused(tmp_path: Path, model: str) -> None:
    file = Path(chats(tmp_path / "mine.jsonl"))
    file.write_text(file.read_text() + json.dumps({"text": "a document"}) + "\n")
    with pytest.raises(UserError, match=r"mixes conversations with other documents \(1 of 61\)"):
        written(tmp_path, "chat", model, str(file))


def test_each_template_says_what_it_does() -> None:
    told = templates()
    assert sorted(told) == ["chat", "compare", "continue", "curate", "prefer"]
    assert all(20 < len(what) < 90 for what in told.values()), told
