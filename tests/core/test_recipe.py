"""Recipes: what they say, what the command line changes in them, and where their inputs come from."""
from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

from trainwright.core.errors import UserError
from trainwright.core.recipe import load, parse, parse_change
from trainwright.core.stage import plain

FILE = Path("life.toml")
TABLE: dict[str, Any] = {
    "seed": 1,
    "stage": [
        {"name": "corpus", "kind": "corpus", "vocab_size": 300, "methods": [{"use": "text", "paths": ["a"]}]},
        {
            "name": "v1.5",
            "kind": "train",
            "from": {"data": "corpus"},
            "model": {"type": "llama"},
            "steps": 3,
            "methods": [{"use": "pack"}, {"use": "adamw", "lr": 1e-3}, {"use": "adamw", "params": "head"}],
        },
        {
            "name": "both",
            "kind": "merge",
            "from": {"models": ["v1.5", "v1.5"]},
            "methods": [{"use": "interpolate"}],
        },
    ],
}


def test_a_recipe_says_what_its_table_says() -> None:
    recipe = parse(TABLE, FILE)
    assert (recipe.title, recipe.seed, recipe.trackers, recipe.root) == ("life", 1, (), Path())
    assert [(s.name, s.kind) for s in recipe.stages] == [
        ("corpus", "corpus"),
        ("v1.5", "train"),
        ("both", "merge"),
    ]
    assert recipe.stage("both").inputs == {"models": ("v1.5", "v1.5")}
    with pytest.raises(UserError, match="did you mean 'both'"):
        recipe.stage("boths")


def test_changes_go_where_they_point_and_leave_the_table_alone() -> None:
    before = copy.deepcopy(TABLE)
    recipe = parse(
        TABLE,
        FILE,
        changes={"seed": 7, "v1.5.steps": 2e1, "v1.5.methods.adamw.lr": 0.1, "v1.5.model.hidden_size": 8},
    )
    stage: Any = recipe.stage("v1.5")
    assert recipe.seed == 7 and stage.steps == 20 and stage.model == {"type": "llama", "hidden_size": 8}
    assert [m.get("lr") for m in stage.methods] == [None, 0.1, None]
    assert before == TABLE
    with pytest.raises(UserError, match=r"from.tokenizer = 'x' is neither an earlier stage nor a path"):
        parse(TABLE, FILE, changes={"corpus.from.tokenizer": "x"})


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("v1.4.steps", "there is no stage 'v1'"),
        ("v1.5", "say which setting of the stage"),
        ("v1.5.methods.adam.lr", "there is no 'adam' to change"),
        ("v1.5.methods.adamw", "say which setting of which method"),
        ("v1.5.stepz", "unknown setting 'stepz' (did you mean 'steps'?)"),
        ("sead", "did you mean 'seed'"),
    ],
)
def test_changes_that_point_nowhere(key: str, words: str) -> None:
    with pytest.raises(UserError) as told:
        parse(TABLE, FILE, changes={key: 1})
    assert words in str(told.value)


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("a.b=1", ("a.b", 1)),
        ("a.b=1e-3", ("a.b", 1e-3)),
        ("a.b=[1, 'x']", ("a.b", [1, "x"])),
        ("a.b = true", ("a.b", True)),
        ("a.b=word", ("a.b", "word")),
        ("a.b=x=y", ("a.b", "x=y")),
        ("a.b=", ("a.b", "")),
    ],
)
def test_values_on_the_command_line_are_toml_or_words(text: str, want: tuple[str, Any]) -> None:
    assert parse_change(text) == want


def test_inputs_are_earlier_stages_or_paths(tmp_path: Path) -> None:
    table = copy.deepcopy(TABLE)
    table["stage"] = [
        {"name": "more", "kind": "train", "from": {"model": "folder", "data": "hf://x/y"}, "epochs": 0.5}
    ]
    with pytest.raises(UserError, match="neither an earlier stage nor a path"):
        parse(table, tmp_path / "life.toml")
    (tmp_path / "folder").mkdir()
    assert parse(table, tmp_path / "life.toml").stages[0].inputs == {
        "model": ("folder",),
        "data": ("hf://x/y",),
    }


def test_a_stage_as_json_has_every_default() -> None:
    told = plain(parse(TABLE, FILE).stage("v1.5"))
    assert {k: told[k] for k in ("kind", "accumulate", "precision", "inputs", "tokens")} == {
        "kind": "train", "accumulate": 1, "precision": "auto", "inputs": {"data": ["corpus"]}, "tokens": None}


def test_a_recipe_is_read_from_a_file(life: Path) -> None:
    recipe = load(life, {"base.steps": 9})
    assert recipe.title == "A tiny life" and recipe.text == life.read_text() and recipe.root == life.parent
    assert recipe.stage("base").steps == 9  # type: ignore[attr-defined]


TEXT = (
    '[[stage]]\nname = "c"\nkind = "corpus"\nvocab_size = 300\nmethods = [{ use = "text", paths = ["a"] }]\n'
)


@pytest.mark.parametrize("data", [TEXT.encode("utf-8-sig"), TEXT.replace("\n", "\r\n").encode()])
def test_marks_of_utf_8_and_ends_of_lines_change_nothing(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_bytes(data)
    assert load(tmp_path / "r.toml").text == TEXT


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (TEXT.encode("utf-16"), "r.toml: a text file in UTF-16: save it in UTF-8"),
        ((TEXT + 'title = "\u00fc"\n').encode("latin-1"), "r.toml: not a text file in UTF-8 (line 6)"),
        (
            (TEXT + "test = " + "9" * 5000).encode(),
            "r.toml, line 6: a number of more digits than any setting takes",
        ),
        (
            (TEXT + "test = " + "9" * 400).encode(),
            "test must be a finite number below 3.4e38 in size, not a number of 400 digits",
        ),
        (
            (TEXT + "test = " + "[" * 5000).encode(),
            "r.toml: lists and tables stand too deep within each other",
        ),
        ((TEXT + "test = " + "[" * 90 + "]" * 90).encode(), "r.toml: test: lists and tables stand too deep"),
        ((TEXT + "test = 1\ntest = 2\n").encode(), "(at line 7, column 9)"),
        ((TEXT + "test = 1979-99-99").encode(), "line 6"),
        (
            TEXT.replace('"c"', '"' + "c" * 100_000 + '"').encode(),
            "name must be a word of at most 100 letters",
        ),
        (TEXT.replace('"c"', '"class\\u001b"').encode(), "name must be a word"),
        ((TEXT + "k" * 5000 + " = 1").encode(), "unknown setting 'kkk"),
        (TEXT.replace('"a"', '"a\\u0000b"').encode(), "methods[0].paths must be text without NUL"),
        ((TEXT + "test = 2020-01-01").encode(), "test must be a number, not 2020-01-01"),
        (b"\x00" * 99, "not valid TOML"),
    ],
)
def test_a_text_that_is_wrong_is_a_sentence_with_its_line(data: bytes, words: str, tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_bytes(data)
    with pytest.raises(UserError) as told:
        load(tmp_path / "r.toml")
    assert words in str(told.value) and len(str(told.value)) < 400 + len(str(tmp_path))


@pytest.mark.parametrize("name", ["hf://", "hf://../x", "hf://a b", "hf:///x"])
def test_names_of_the_hub_are_checked(name: str) -> None:
    with pytest.raises(UserError, match=r"a model of the Hub is hf://OWNER/NAME"):
        parse(TABLE, FILE, changes={"v1.5.from.model": name})


def test_a_home_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "ckpt").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path))
    assert parse(TABLE, FILE, changes={"both.from.base": "~/ckpt"}).stages[2].inputs["base"] == ("~/ckpt",)
    with pytest.raises(UserError, match="'~/none' is neither an earlier stage nor a path"):
        parse(TABLE, FILE, changes={"both.from.base": "~/none"})


@pytest.mark.parametrize("text", ["a.b=" + "9" * 5000, "a.b=" + "[" * 3000])
def test_values_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(UserError, match="this is no value: it is too long or too deep"):
        parse_change(text)


def test_a_value_on_the_command_line_says_one_thing() -> None:
    assert parse_change("a.b=1\nseed = 2") == ("a.b", "1\nseed = 2")


@pytest.mark.parametrize(("line", "words"), [
    ("learning_rate = 1e-3", "unknown setting 'learning_rate'; adamw has the setting 'lr': write it there"),
    ("weight_decay = 0.1", "unknown setting 'weight_decay'; adamw has the setting 'weight_decay'"),
    ("gradient_accumulation_steps = 2", "(did you mean 'accumulate'?)"),
    ("max_steps = 2", "(did you mean 'steps'?)"),
])
def test_a_key_at_the_wrong_place_or_of_another_program_is_pointed_to_its_own(
    tmp_path: Path, line: str, words: str
) -> None:
    (tmp_path / "r.toml").write_text(
        f'[[stage]]\nname = "a"\nkind = "train"\nfrom = {{ model = "." }}\n{line}\n'
        'methods = [{ use = "adamw" }]\n')
    with pytest.raises(UserError) as told:
        load(tmp_path / "r.toml")
    assert words in str(told.value)
