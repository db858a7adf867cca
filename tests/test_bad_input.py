"""Bad input gets one clear sentence: exit code 2, the file and the key are named,
nothing half-written is left.

Each case changes one thing in a tiny life that runs (``conftest.LIFE``) and gives it
to the real command line.
"""


from __future__ import annotations

import errno
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest

from tests.conftest import LIFE, write_texts
from trainwright import cli, cli_ends
from trainwright.core import hardware, parts

Change = tuple[str, str]
"""What stands in the recipe, and what stands there instead."""


@dataclass(frozen=True)
class Answer:
    """What a command said and how it ended."""

    code: int
    out: str
    err: str


@dataclass
class Home:
    """A folder with texts, recipes and a store that holds the tiny life."""

    folder: Path

    @property
    def recipe(self) -> Path:
        return self.folder / "life.toml"

    @property
    def store(self) -> Path:
        return self.folder / "store"

    def write(self, *changes: Change) -> None:
        text = LIFE
        for old, new in changes:
            assert text.count(old) >= 1, f"the tiny life has no {old!r}"
            text = text.replace(old, new, 1)
        self.recipe.write_text(text)

    def artifacts(self) -> set[str]:
        return {f.parent.name for f in self.store.glob("*/manifest.json")}

    def check_store(self) -> None:
        """Every artifact is whole, and nothing has a temporary name."""
        folders = {f.name for f in self.store.glob("*-*") if f.is_dir()}
        assert folders == self.artifacts(), "an artifact folder without a manifest"
        assert not [*self.store.rglob("*.tmp")], "half-written files are left"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    made = Home(tmp_path_factory.mktemp("home"))
    write_texts(made.folder / "texts")
    return made


Say = Callable[..., Answer]


@pytest.fixture
def say(home: Home, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Say:
    """The command line, in this process, as the program starts it."""
    def run(*words: Any) -> Answer:
        monkeypatch.chdir(home.folder)
        monkeypatch.setenv("COLUMNS", "200")
        monkeypatch.setattr(sys, "argv", ["trainwright", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return Answer(int(ended.value.code or 0), *capsys.readouterr())
    return run


@pytest.fixture
def lived(home: Home, say: Say) -> Home:
    """The same with the tiny life in its store; made once."""
    if not home.artifacts():
        home.write()
        answer = say("run", "life.toml")
        assert answer.code == 0, answer.err
        home.check_store()
    return home


def check_refused(answer: Answer, *words: str) -> None:
    """One sentence on stderr that has these words, and exit code 2."""
    lines = answer.err.strip().splitlines()
    assert "Traceback" not in answer.out + answer.err, answer.err
    assert len(lines) == 1 and lines[0].startswith("error: "), answer.err
    for word in words:
        assert word in lines[0], f"{word!r} is not in: {lines[0]}"
    assert lines[0].endswith((".", "?", ")")), f"no sentence: {lines[0]}"
    assert answer.code == 2


# ---- what stands in a recipe -------------------------------------------------------------------------------

BASE, ADAPT, CORPUS, MERGED, JUDGE = (
    f"life.toml: stage {name!r}" for name in ("base", "adapt", "corpus", "merged", "judge")
)
METHODS = "{ use = \"adamw\", lr = 1e-2 }, { use = \"wsd\" }"

PLANNED: dict[str, tuple[list[Change], tuple[str, ...]]] = {
    # keys and types
    "unknown top-level key": (
        [("seed = 3", "sead = 3")],
        ("life.toml: unknown key 'sead' (did you mean 'seed'?)",),
    ),
    "unknown top-level key, none near": (
        [("seed = 3", "zzz = 3")],
        ("unknown key 'zzz' (known: seed, stage, title, trackers)",),
    ),
    "title of another type": (
        [('title = "A tiny life"', "title = 3")],
        ("life.toml: title must be a string, not 3",),
    ),
    "seed of another type": (
        [("seed = 3", 'seed = "three"')],
        ("life.toml: seed must be a whole number, not 'three'",),
    ),
    "seed true": ([("seed = 3", "seed = true")], ("life.toml: seed must be a whole number, not True",)),
    "seed negative": ([("seed = 3", "seed = -3")], ("life.toml: seed must be from 0",)),
    "seed too large": ([("seed = 3", "seed = 99999999999999999999")], ("life.toml: seed must be from 0",)),
    "trackers of another type": (
        [("seed = 3", "trackers = [1]")],
        ("life.toml: trackers[0] must be a string, not 1",),
    ),
    "stage as a single table": (
        [(LIFE, '[stage]\nname = "x"\n')],
        ("life.toml: ", "write [[stage]], not [stage]"),
    ),
    "stage as a number": ([(LIFE, "stage = 1")], ("life.toml: stage must be a list, not 1",)),
    "stages that are words": (
        [(LIFE, 'stage = ["base"]')],
        ("life.toml: stage 1 must be a table: write [[stage]]",),
    ),
    "no stage": ([(LIFE, 'title = "x"')], ("life.toml: a recipe needs at least one [[stage]]",)),
    "no name": ([('name = "base"\n', "")], ("life.toml: stage 2: name must be a word",)),
    "bad name": (
        [('name = "base"', 'name = "my base"')],
        ("life.toml: stage 2: name must be a word", "not 'my base'"),
    ),
    "name that is a path": (
        [('name = "base"', 'name = "../base"')],
        ("name must be a word", "not '../base'"),
    ),
    "name too long": (
        [('name = "base"', f'name = "{"b" * 300}"')],
        ("name must be a word of at most 100 letters",),
    ),
    "name of another type": ([('name = "base"', "name = 3")], ("name must be a word", "not 3")),
    "two stages of one name": (
        [('name = "adapt"', 'name = "base"')],
        (f"{BASE}: two stages have this name",),
    ),
    "no kind": (
        [('kind = "merge"\n', "")],
        (f"{MERGED}: kind must be one of corpus, evaluate, merge, repeat, train, transform, not None",),
    ),
    "unknown kind": (
        [('kind = "train"', 'kind = "trian"')],
        (f"{BASE}: kind must be one of", "did you mean 'train'"),
    ),
    "unknown key of a train stage": (
        [("steps = 6", "steps = 6\nbatchtokens = 3")],
        (f"{BASE}: unknown setting 'batchtokens' (did you mean 'batch_tokens'?)",),
    ),
    "unknown key of a corpus stage": (
        [("tune = 0.1", "tuen = 0.1")],
        (f"{CORPUS}: unknown setting 'tuen' (did you mean 'tune'?)",),
    ),
    "unknown key of a merge stage": (
        [('kind = "merge"', 'kind = "merge"\nsteps = 3')],
        (f"{MERGED}: unknown setting 'steps'",),
    ),
    "unknown key of an evaluate stage": (
        [('old = ["prose"]', 'olds = ["prose"]')],
        (f"{JUDGE}: unknown setting 'olds' (did you mean 'old'?)",),
    ),
    "inputs instead of from": (
        [('from = { data = "corpus" }', 'inputs = { data = "corpus" }')],
        (f"{BASE}: unknown setting 'inputs' (did you mean 'from'?)",),
    ),
    "steps of another type": (
        [("steps = 6", 'steps = "6"')],
        (f"{BASE}: steps must be a whole number, not '6'",),
    ),
    "steps not whole": ([("steps = 6", "steps = 6.5")], (f"{BASE}: steps must be a whole number, not 6.5",)),
    "steps infinite": ([("steps = 6", "steps = inf")], (f"{BASE}: steps must be a whole number, not inf",)),
    "epochs nan": ([("steps = 6", "epochs = nan")], (f"{BASE}: epochs must be a number, and nan is none",)),
    "epochs infinite": ([("steps = 6", "epochs = inf")], (f"{BASE}: epochs must be a finite number",)),
    "compile of another type": (
        [("compile = false", 'compile = "no"')],
        (f"{BASE}: compile must be true or false or one of 'auto', not 'no'",),
    ),
    "unknown precision": (
        [('precision = "fp32"', 'precision = "fp16"')],
        (f"{BASE}: precision must be one of 'auto', 'auto-true', 'bf16', 'bf16-true', 'fp32', not 'fp16'",),
    ),
    "unknown engine": (
        [("tune = 0.1", 'engine = "spark"')],
        (f"{CORPUS}: engine must be one of 'native', 'ray', not 'spark'",),
    ),
    "methods of another type": (
        [('methods = [{ use = "interpolate", weights = [0.5, 0.5] }]', 'methods = "interpolate"')],
        (f"{MERGED}: methods must be a list, not 'interpolate'",),
    ),
    "a method as a word": (
        [('{ use = "clip_gradients" }', '"clip"')],
        (f"{BASE}: a method is a table such as", "not 'clip'"),
    ),
    "a method without use": (
        [('{ use = "clip_gradients" }', "{ norm = 1.0 }")],
        (f"{BASE}: a method is a table such as", "{'norm': 1.0}"),
    ),
    # where from
    "from of another type": (
        [('from = { data = "corpus" }', 'from = "corpus"')],
        (f"{BASE}: from must be a table such as", "not 'corpus'"),
    ),
    "from an unknown role": (
        [('from = { data = "corpus" }', 'from = { dat = "corpus" }')],
        (f"{BASE}: nobody here asks for from.dat (did you mean 'data'?)",),
    ),
    "from a number": (
        [('from = { data = "corpus" }', "from = { data = 1 }")],
        (f"{BASE}: from.data must be a name or a list of names, not 1",),
    ),
    "from an empty list": (
        [('models = ["base", "adapt"]', "models = []")],
        (f"{MERGED}: from.models must be a name or a list of names, not []",),
    ),
    "from nothing known": (
        [('data = "corpus" }', 'data = "corpse" }')],
        (f"{BASE}: from.data = 'corpse' is neither an earlier stage nor a path (did you mean 'corpus'?)",),
    ),
    "from a later stage": (
        [('from = { model = "base", data', 'from = { model = "merged", data')],
        (f"{ADAPT}: from.model = 'merged' is a later stage",),
    ),
    "from itself": (
        [('from = { model = "base", data', 'from = { model = "adapt", data')],
        (f"{ADAPT}: from.model = 'adapt' is this stage itself",),
    ),
    "from a stage of another kind": (
        [('from = { model = "base", data', 'from = { model = "corpus", data')],
        (f"{ADAPT}: from.model must be a model; 'corpus' is of kind corpus",),
    ),
    "data from a model": (
        [('model = "base", data = "corpus"', 'model = "base", data = "base"')],
        (f"{ADAPT}: from.data must be a corpus; 'base' is of kind train",),
    ),
    "two where one is taken": (
        [('from = { model = "base"', 'from = { model = ["base", "base"]')],
        (f"{ADAPT}: from.model takes one artifact, not 2",),
    ),
    "no models to merge": (
        [('from = { models = ["base", "adapt"] }\n', "")],
        (f"{MERGED}: a stage of kind merge needs from.models",),
    ),
    "from a folder that is no checkpoint": (
        [('from = { model = "base", data', 'from = { model = "texts", data')],
        (ADAPT, "texts is no Hugging Face checkpoint"),
    ),
    "from a package that is not there": (
        [('from = { model = "base", data', 'from = { model = "package://no_such", data')],
        (f"{ADAPT}: the package 'no_such' is not installed",),
    ),
    # methods
    "unknown method": (
        [('use = "adamw"', 'use = "adamv"')],
        (f"{BASE}: there is no method 'adamv' (did you mean 'adamw'?)",),
    ),
    "a method that belongs elsewhere": (
        [('{ use = "clip_gradients" }', '{ use = "interpolate" }')],
        (f"{BASE}: interpolate is of kind Arithmetic and belongs in a stage of kind merge, not train",),
    ),
    "an optimizer in a merge": (
        [('{ use = "interpolate", weights = [0.5, 0.5] }', '{ use = "adamw" }')],
        (f"{MERGED}: adamw is of kind Optimizer and belongs in a stage of kind train",),
    ),
    "unknown setting of a method": (
        [("lr = 1e-2", "learning_rate = 1e-2")],
        (f"{BASE} (adamw): unknown setting 'learning_rate'",),
    ),
    "setting of another type": (
        [("lr = 1e-2", 'lr = "1e-2"')],
        (f"{BASE} (adamw): lr must be a number, not '1e-2'",),
    ),
    "needed setting left out": (
        [(', paths = ["texts/prose", "texts/code"]', "")],
        (f"{CORPUS} (text): the setting 'paths' is needed",),
    ),
    "setting out of range": (
        [("lr = 1e-2", "beta1 = 1.5")],
        (f"{BASE} (adamw): beta1 must be at least 0 and below 1, not 1.5",),
    ),
    "setting negative": ([("lr = 1e-2", "lr = -1.0")], (f"{BASE} (adamw): lr must be 0 or more, not -1.0",)),
    "setting nan": ([("lr = 1e-2", "lr = nan")], (f"{BASE} (adamw): lr must be a number, and nan is none",)),
    "clip at zero": (
        [('{ use = "clip_gradients" }', '{ use = "clip_gradients", norm = 0 }')],
        (f"{BASE} (clip_gradients): norm must be above 0, not 0",),
    ),
    "two optimizers": (
        [(METHODS, f'{METHODS}, {{ use = "adamw" }}')],
        (BASE, "adamw.2 and adamw.1 both claim the step of the parameters '*'", "limit them with 'params'"),
    ),
    "two schedules": (
        [('{ use = "wsd" }', '{ use = "wsd" }, { use = "cosine" }')],
        (BASE, "cosine.1 and wsd.1 both claim knob:lr"),
    ),
    "two adapters": (
        [('{ use = "clip_gradients" }', '{ use = "lora" }, { use = "lora", rank = 2 }')],
        (BASE, "lora.2 and lora.1 both claim model."),
    ),
    "an adapter on nothing": (
        [('{ use = "clip_gradients" }', '{ use = "lora", layers = "*.query" }')],
        (BASE, "'*.query' matches no"),
    ),
    "no optimizer for some": (
        [('use = "adamw"', 'use = "adamw", params = "*.mlp.*"')],
        (BASE, "no optimizer takes the step of model.embed_tokens.weight"),
    ),
    "an optimizer for nothing": (
        [('use = "adamw"', 'use = "adamw", params = "encoder.*"')],
        (BASE, "adamw.1: params = 'encoder.*' matches no trainable parameter"),
    ),
    "no data": (
        [('from = { data = "corpus" }\n', ""), ('{ use = "pack", length = 32 }, ', "")],
        (f"{BASE}: nothing to train on",),
    ),
    "a merge without a method": (
        [('{ use = "interpolate", weights = [0.5, 0.5] }', "")],
        (f"{MERGED}: a merge needs a method",),
    ),
    "weights that do not add up": (
        [("[0.5, 0.5]", "[0.5, 0.6]")],
        (f"{MERGED} (interpolate): weights must add up to 1",),
    ),
    "a corpus of nothing": (
        [('methods = [{ use = "text", paths = ["texts/prose", "texts/code"] }]', "")],
        (f"{CORPUS}: methods names no source",),
    ),
    "an evaluation by nothing": (
        [('methods = [{ use = "held_out", length = 32 }]', "")],
        (f"{JUDGE}: methods names no evaluator",),
    ),
    "a baseline that is not judged": (
        [('old = ["prose"]', 'baseline = "adapt"')],
        (f"{JUDGE}: baseline 'adapt' is not one of from.models",),
    ),
    # sizes
    "no end": (
        [("steps = 6\n", "")],
        (f"{BASE}: say how far to train with one of tokens, steps, epochs; it has none",),
    ),
    "two ends": (
        [("steps = 6", "steps = 6\ntokens = 1000")],
        (f"{BASE}: say how far to train with one of tokens, steps, epochs; it has tokens, steps",),
    ),
    "zero steps": ([("steps = 6", "steps = 0")], (f"{BASE}: steps must be a positive number, not 0",)),
    "negative tokens": (
        [("steps = 6", "tokens = -5")],
        (f"{BASE}: tokens must be a positive number, not -5",),
    ),
    "fewer tokens than a step": (
        [("steps = 6", "tokens = 100")],
        (f"{BASE}: tokens = 100 is less than one step of 256 tokens",),
    ),
    "two sizes of a step": (
        [("batch_tokens = 256", "batch_tokens = 256\nbatch_size = 8")],
        (f"{BASE}: say batch_tokens or batch_size, not both",),
    ),
    "a step of nothing": (
        [("batch_tokens = 256", "batch_size = 0")],
        (f"{BASE}: batch_size must be a positive number, not 0",),
    ),
    "a step shorter than a row": (
        [("batch_tokens = 256", "batch_tokens = 16")],
        (f"{BASE}: batch_tokens = 16 is less than one row of 32 tokens",),
    ),
    "accumulate zero": (
        [("batch_tokens = 256", "batch_tokens = 256\naccumulate = 0")],
        (f"{BASE}: accumulate must be a positive number, not 0",),
    ),
    "accumulate that does not divide": (
        [("batch_tokens = 256", "batch_tokens = 256\naccumulate = 3")],
        (f"{BASE}: a step of 8 rows does not divide", "take a multiple of 3 rows"),
    ),
    "negative save_every": (
        [("save_every = 2", "save_every = -2")],
        (f"{BASE}: save_every must not be negative, not -2",),
    ),
    "row longer than the model": (
        [("length = 32", "length = 65")],
        (BASE, "rows of 65 tokens; the model takes at most 64 (max_position_embeddings)"),
    ),
    "row of one token": (
        [("length = 32", "length = 1")],
        (f"{BASE} (pack): length must be 2 or more, not 1",),
    ),
    "shares that leave nothing": (
        [("tune = 0.1", "tune = 0.95")],
        (f"{CORPUS}: tune and test are shares between 0 and 1",),
    ),
    "vocabulary too small": (
        [("vocab_size = 300", "vocab_size = 100")],
        (f"{CORPUS}: vocab_size must be at least 258",),
    ),
    "vocabulary and tokenizer": (
        [("vocab_size = 300", 'vocab_size = 300\ntokenizer = "texts"')],
        (f"{CORPUS}: say either vocab_size", "or tokenizer"),
    ),
    "vocabulary that does not fit": (
        [('type = "llama"', 'type = "llama", vocab_size = 100')],
        (f"{BASE}: model.vocab_size 100 does not fit the tokenizer, which has 300 tokens",),
    ),
    # models
    "model both": (
        [
            (
                'from = { model = "base", data = "corpus" }',
                'from = { model = "base", data = "corpus" }\nmodel = { type = "llama" }',
            )
        ],
        (f"{ADAPT}: say one of from.model", "it has from.model and model"),
    ),
    "model neither": (
        [('from = { model = "base", data', "from = { data")],
        (f"{ADAPT}: say one of from.model", "it has none"),
    ),
    "model without a type": ([('type = "llama", ', "")], (f"{BASE}: model needs a type",)),
    "unknown type of model": (
        [('type = "llama"', 'type = "lama"')],
        (f"{BASE}: model.type 'lama' is no model of transformers (did you mean 'llama'?)",),
    ),
    "a model that is no language model": (
        [
            (
                'type = "llama", hidden_size = 16, intermediate_size = 32',
                'type = "vit", hidden_size = 16, intermediate_size = 32',
            )
        ],
        (BASE, "model"),
    ),
    "unknown field of a model": (
        [("hidden_size = 16", "hiden_size = 16")],
        (f"{BASE}: model.hiden_size is no field of LlamaConfig (did you mean 'hidden_size'?)",),
    ),
    "field of a model of another type": (
        [("hidden_size = 16", 'hidden_size = "big"')],
        (f"{BASE}: model: ", "hidden_size"),
    ),
    "layers beyond all reason": (
        [("num_hidden_layers = 2", "num_hidden_layers = 1_000_000_000_000_000_000")],
        (f"{BASE}: model.num_hidden_layers = 1000000000000000000 is too many",),
    ),
    "a vocabulary beyond all reason": (
        [('type = "llama"', 'type = "llama", vocab_size = 1_000_000_000_000_000_000')],
        (BASE, "model.vocab_size must be a whole number below 2**31 in size"),
    ),
    "heads that do not divide": ([("num_attention_heads = 2", "num_attention_heads = 3")], (BASE, "heads")),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", PLANNED)
def test_a_plan_refuses(name: str, home: Home, say: Say) -> None:
    changes, words = PLANNED[name]
    home.write(*changes)
    check_refused(say("plan", "life.toml", "--store", "untouched"), "life.toml", *words)
    assert not (home.folder / "untouched").exists(), "a plan writes nothing"



# ---- what only running can tell ----------------------------------------------------------------------------

TALK = (
    '[[stage]]\nname = "talk"\nkind = "corpus"\nvocab_size = 300\nmethods = [{{ use = "text", paths = '
    '["{}"]{} }}]{}\n'
)

FILES: dict[str, bytes] = {
    "broken.jsonl": b'{"text": "one"}\n{"text": \n',
    "columns.jsonl": b'{"body": "one"}\n',
    "number.jsonl": b'{"text": 3}\n',
    "list.jsonl": b"[1, 2]\n3\n",
    "latin.txt": "über".encode("latin-1"),
    "blank/a.txt": b" \n",
    "odd.xyz": b"x",
    "broken.csv": b"text,domain\nx\n",
    "broken.parquet": b"PAR1nothing",
    "silent.jsonl": json.dumps({"messages": [{"role": "user", "content": "Hello?"}]}).encode() + b"\n",
    "chat.jsonl": json.dumps(
        {"messages": [{"role": "user", "content": "Hello?"}, {"role": "assistant", "content": "Yes."}]}
    ).encode()
    + b"\n",
    "nobody.jsonl": b'{"messages": [{"content": "Hello?"}]}\n',
    "empty/.hidden": b"",
    "plain.jinja": b"{% for m in messages %}{{ m.content }}{% endfor %}",
    "twins.jsonl": b'{"name": "a", "text": "x"}\n{"name": "a", "text": "y"}\n',
}

CORPORA: dict[str, tuple[str, tuple[str, ...]]] = {
    "a file that is not there": (TALK.format("none.txt", "", ""), ("there is no file or folder none.txt",)),
    "a path that no file can have": (TALK.format("x" * 500, "", ""), ("there is no file or folder xxx",)),
    "a glob that meets nothing": (TALK.format("texts/*.md", "", ""), ("no file matches texts/*.md",)),
    "an ending that is not known": (
        TALK.format("odd.xyz", "", ""),
        ("odd.xyz: the ending '.xyz' is not known",),
    ),
    "a folder without texts": (
        TALK.format("empty", "", ""),
        ("the folder empty holds no file that can be read",),
    ),
    "blank documents only": (TALK.format("blank", "", ""), ("the corpus is empty",)),
    "broken JSON lines": (
        TALK.format("broken.jsonl", "", ""),
        ("broken.jsonl, line 2: this is no JSON object",),
    ),
    "rows that are no objects": (
        TALK.format("list.jsonl", "", ""),
        ("list.jsonl, row 1: a row is an object",),
    ),
    "a column that is not there": (
        TALK.format("columns.jsonl", "", ""),
        ("columns.jsonl, row 1: there is no column 'text'; it has body: name",),
    ),
    "a column of numbers": (
        TALK.format("number.jsonl", "", ""),
        ("number.jsonl, row 1: the column 'text' must hold text, not '3'",),
    ),
    "a row with fewer columns": (
        TALK.format("broken.csv", "", ""),
        ("broken.csv, line 2: this row has not the 2 columns",),
    ),
    "a Parquet file that is none": (
        TALK.format("broken.parquet", "", ""),
        ("broken.parquet is no Parquet file",),
    ),
    "text of another encoding": (TALK.format("latin.txt", "", ""), ("latin.txt is not UTF-8 (byte 0)",)),
    "ids that are not there": (
        TALK.format("columns.jsonl", ', field = "body", id = "nr"', ""),
        ("columns.jsonl, row 1: the column 'nr' (the setting id)",),
    ),
    "one id twice": (
        TALK.format("twins.jsonl", ', id = "name"', ""),
        ("1 documents share an id", "twins.jsonl:1 and twins.jsonl:2"),
    ),
    "a message of nobody": (
        TALK.format("nobody.jsonl", "", ""),
        ("nobody.jsonl, row 1: a message must be {role, content}",),
    ),
    "conversations without a template": (
        TALK.format("chat.jsonl", "", ""),
        ("the tokenizer has no chat template",),
    ),
    "an unknown template": (
        TALK.format("chat.jsonl", "", '\nchat_template = "chatlm"'),
        ("chat_template = 'chatlm' is no file and no built-in template (did you mean 'chatml'?)",),
    ),
    "a template without marks": (
        TALK.format("chat.jsonl", "", '\nchat_template = "plain.jinja"'),
        ("plain.jinja' does not mark what the assistant says",),
    ),
    "nothing that is learned": (
        TALK.format("silent.jsonl", "", '\nchat_template = "chatml"'),
        ("none of the 1 conversations has a token to learn",),
    ),
    "a tokenizer that is none": (
        TALK.format("chat.jsonl", "", "").replace("vocab_size = 300", 'tokenizer = "texts"'),
        ("texts has no tokenizer.json",),
    ),
    "a tokenizer that is not there": (
        TALK.format("chat.jsonl", "", "").replace("vocab_size = 300", 'tokenizer = "nowhere"'),
        ("tokenizer = 'nowhere' is no folder",),
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CORPORA)
def test_a_corpus_refuses(name: str, home: Home, say: Say) -> None:
    for file, data in FILES.items():
        (home.folder / file).parent.mkdir(exist_ok=True)
        (home.folder / file).write_bytes(data)
    text, words = CORPORA[name]
    home.recipe.write_text(text)
    before = home.artifacts()
    check_refused(say("run", "life.toml"), "life.toml: stage 'talk'", *words)
    home.check_store()
    assert home.artifacts() == before


MINE = (
    "from trainwright.core.method import Objective\n\n\nclass Mine(Objective):\n    \"\"\"Of one's "
    "own.\"\"\"\n"
)
NAN = '''"""A loss that goes wrong."""
import torch
from trainwright.core.method import Objective, Update
from trainwright.lm.losses import token_losses, trained_tokens


class Mine(Objective):
    """Next token, until it is none."""

    wrong: int = 5
    """Step from which it is not a number."""

    def count(self, batch):
        return trained_tokens(batch)

    def loss(self, model, batch, state, ctx):
        return token_losses(model, batch, ctx) * (torch.nan if ctx.step + 1 >= self.wrong else 1.0)
'''
SPOIL = '''"""An update that goes wrong."""
from trainwright.core.method import Update


class Spoil(Update):
    """Divides by nothing, once."""

    def update(self, updates, params, state, ctx):
        return {n: u / float(ctx.step != 3) if ctx.step != 3 else u / 0.0 for n, u in updates.items()}
'''
NEXT = '{ use = "next_token" }'

RUN: dict[str, tuple[list[Change], dict[str, str], tuple[str, ...]]] = {
    "an unknown domain in pack": (
        [('domains = ["code"]', 'domains = ["coed"]')],
        {},
        (ADAPT, "the corpus has no domain 'coed' (did you mean 'code'?)"),
    ),
    "an unknown domain that is old": (
        [('old = ["prose"]', 'old = ["porse"]')],
        {},
        (JUDGE, "the domain 'porse'", "did you mean 'prose'"),
    ),
    "an unknown domain that is new": (
        [('new = ["code"]', 'new = ["cobol"]')],
        {},
        (JUDGE, "the domain 'cobol'"),
    ),
    "an unknown domain in held_out": (
        [('use = "held_out", length', 'use = "held_out", domains = ["porse"], length')],
        {},
        (JUDGE, "no domain 'porse' (did you mean 'prose'?)"),
    ),
    "held_out without data": (
        [
            (
                'from = { models = ["base", "merged"], data = "corpus" }',
                'from = { models = ["base", "merged"] }',
            )
        ],
        {},
        (JUDGE, "needs one artifact as 'data'"),
    ),
    "pack without data": (
        [('from = { model = "base", data = "corpus" }', 'from = { model = "base" }')],
        {},
        (ADAPT, "needs one artifact as 'data'"),
    ),
    "a data folder that is no corpus": (
        [('model = "base", data = "corpus"', 'model = "base", data = "texts"')],
        {},
        (ADAPT, "texts is no corpus"),
    ),
    "more weights than models": (
        [("[0.5, 0.5]", "[0.5, 0.25, 0.25]")],
        {},
        (MERGED, "weights has 3 numbers for 2 models"),
    ),
    "slerp of three": (
        [
            ('["base", "adapt"] }', '["base", "adapt", "base"] }'),
            ('use = "interpolate", weights = [0.5, 0.5]', 'use = "slerp"'),
        ],
        {},
        (MERGED, "from.models must name 2, not 3"),
    ),
    "task arithmetic without a base": (
        [('use = "interpolate", weights = [0.5, 0.5]', 'use = "task_arithmetic"')],
        {},
        (MERGED, "needs the model that the others were trained from"),
    ),
    "a schedule longer than the stage": (
        [('lr = 1e-2 }]', 'lr = 1e-2 }, { use = "wsd", warmup = 30 }]')],
        {},
        (ADAPT, "steps do not fit into a stage of 3 steps"),
    ),
    "an unknown domain in mixture": (
        [('lr = 1e-2 }]', 'lr = 1e-2 }, { use = "mixture", weights = { porse = 1.0 } }]')],
        {},
        (ADAPT, "the mixture names the domain 'porse'"),
    ),
    "a tracker that is none": (
        [("seed = 3", 'seed = 3\ntrackers = ["tensorbord"]')],
        {},
        ("life.toml: ", "there is no tracker 'tensorbord' (did you mean 'tensorboard'?)"),
    ),
    "architectures that differ": (
        [
            ('from = { models = ["base", "adapt"] }', 'from = { models = ["base", "wide"] }'),
            (
                '[[stage]]\nname = "merged"',
                '[[stage]]\nname = "wide"\nkind = "train"\nfrom = { data = "corpus" }\nmodel = { type = '
                '"llama", hidden_size = 8, intermediate_size = 32, '
                'num_hidden_layers = 2, num_attention_heads = 2, max_position_embeddings = 64 }\nsteps = '
                '1\nbatch_size = 2\nmethods = [{ use = "pack", length = 32 }]\n\n[[stage]]\nname = "merged"',
            ),
        ],
        {},
        (MERGED, "base and wide compute different functions of their weights: ", "hidden_size (16, 8)"),
    ),
    "another tokenizer than the model's": (
        [
            ('model = "base", data = "corpus"', 'model = "base", data = "other"'),
            (
                '[[stage]]\nname = "adapt"',
                '[[stage]]\nname = "other"\nkind = "corpus"\nvocab_size = 280\nmethods = [{ use = "text", '
                'paths = ["texts/code"] }]\n\n[[stage]]\nname = "adapt"',
            ),
        ],
        {},
        (ADAPT, "the corpus was tokenized by another tokenizer than the model's own"),
    ),
    "a file of ones own that is not there": (
        [(NEXT, '{ use = "./missing.py" }')],
        {},
        (BASE, "there is no file", "missing.py"),
    ),
    "a file without a method": (
        [(NEXT, '{ use = "./mine.py" }')],
        {"mine.py": "x = 1\n"},
        ("mine.py must define one method, and it defines 0",),
    ),
    "a file with two methods": (
        [(NEXT, '{ use = "./mine2.py" }')],
        {"mine2.py": MINE + MINE.replace("Mine", "Other")},
        (BASE, "mine2.py must define one method, and it defines 2: Mine, Other"),
    ),
    "a file that is no Python": (
        [(NEXT, '{ use = "./mine3.py" }')],
        {"mine3.py": "x = (\n"},
        (BASE, "mine3.py, line 1: this is no Python: '(' was never closed"),
    ),
    "a file that imports what is not there": (
        [(NEXT, '{ use = "./mine4.py" }')],
        {"mine4.py": "\nimport nothing_here\n"},
        (BASE, "mine4.py, line 2: ModuleNotFoundError: No module named 'nothing_here'"),
    ),
    "a setting of ones own that is not there": (
        [(NEXT, '{ use = "./mine5.py", wide = 3 }')],
        {"mine5.py": MINE},
        (f"{BASE} (./mine5.py): unknown setting 'wide'",),
    ),
    "a loss that is not a number": (
        [(NEXT, '{ use = "./mine6.py" }')],
        {"mine6.py": NAN},
        (BASE, "the loss is nan at step 5", "the last good checkpoint is", "step-00000004"),
    ),
    "a loss that never was one": (
        [(NEXT, '{ use = "./mine7.py", wrong = 1 }')],
        {"mine7.py": NAN},
        (BASE, "the loss is nan at step 1", "there was no checkpoint yet"),
    ),
    "weights that are spoilt when they are saved": (
        [('{ use = "clip_gradients" }', '{ use = "./mine8.py" }')],
        {"mine8.py": SPOIL},
        (
            BASE,
            "the weights are no finite numbers after step 4",
            "the last good checkpoint is",
            "step-00000002",
        ),
    ),
    "weights that are spoilt by the last step": (
        [('{ use = "clip_gradients" }', '{ use = "./mine9.py" }'), ("steps = 6", "steps = 4")],
        {"mine9.py": SPOIL},
        (BASE, "the weights are no finite numbers after step 4", "step-00000002"),
    ),
    "a learning rate out of all reason": (
        [("lr = 1e-2", "lr = 1e38")],
        {},
        (BASE, "at step", "Lower the learning rate"),
    ),
    "a controller that stops the stage": (
        [('{ use = "wsd" }', '{ use = "./mine10.py" }')],
        {
            "mine10.py": NAN.split("import torch")[0]
            + "from trainwright.core.method import Controller, Stop\n\n\nclass Halt(Controller):\n    def "
            "tick(self, view, state):\n        return [Stop('enough', failed=True)] if view.step == 3 else "
            "[]\n"
        },
        (BASE, "halt.1 stopped the stage at step 3: enough", "step-00000002"),
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", RUN)
def test_a_run_refuses(name: str, lived: Home, say: Say) -> None:
    changes, files, words = RUN[name]
    for file, text in files.items():
        (lived.folder / file).write_text(text)
    lived.write(*changes)
    before = lived.artifacts()
    check_refused(say("run", "life.toml"), *words)
    lived.check_store()
    new = {f.split("-")[0] for f in lived.artifacts() - before}
    assert new <= {"wide", "other", "adapt", "merged"} - {
        "".join(w.split("'")[1:2]) for w in words if "stage '" in w
    }, "the stage that failed is in the store"


# ---- commands and what stands outside a recipe -------------------------------------------------------------

COMMANDS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "no such recipe": (("run", "lief.toml"), ("there is no recipe lief.toml",)),
    "a folder as a recipe": (("run", "texts"), ("there is no recipe texts",)),
    "not TOML": (("plan", "broken.toml"), ("broken.toml: not valid TOML", "line 2")),
    "not UTF-8": (("plan", "latin.toml"), ("latin.toml: not a text file in UTF-8",)),
    "an empty recipe": (("run", "empty.toml"), ("empty.toml: a recipe needs at least one [[stage]]",)),
    "--set without a value": (
        ("run", "life.toml", "--set", "base.steps"),
        ("--set base.steps: write STAGE.KEY=VALUE",),
    ),
    "--set of an unknown stage": (
        ("run", "life.toml", "--set", "bas.steps=3"),
        ("life.toml: --set bas.steps: there is no stage 'bas' (did you mean 'base'?)",),
    ),
    "--set of an unknown key": (
        ("run", "life.toml", "--set", "base.stepz=3"),
        (f"{BASE}: unknown setting 'stepz' (did you mean 'steps'?)",),
    ),
    "--set of another type": (
        ("run", "life.toml", "--set", "base.steps=many"),
        (f"{BASE}: steps must be a whole number, not 'many'",),
    ),
    "--set of an unknown method": (
        ("run", "life.toml", "--set", "base.methods.adam.lr=3"),
        ("life.toml: --set base.methods.adam.lr: there is no 'adam' to change",),
    ),
    "--set of an unknown setting": (
        ("plan", "life.toml", "--set", "base.methods.adamw.lrr=3"),
        (f"{BASE} (adamw): unknown setting 'lrr' (did you mean 'lr'?)",),
    ),
    "--set of a top-level key": (
        ("plan", "life.toml", "--set", "sead=3"),
        ("life.toml: unknown key 'sead' (did you mean 'seed'?)",),
    ),
    "--set of all stages": (
        ("plan", "life.toml", "--set", "stage=3"),
        ("life.toml: stage must be a list, not 3",),
    ),
    "a store that is a file": (
        ("run", "life.toml", "--store", "life.toml"),
        ("life.toml is a file; a store is a folder",),
    ),
    "a recipe with a name that no file can have": (
        ("plan", "x" * 300 + ".toml"),
        ("xxx.toml' is too long for the name of a file",),
    ),
    "--fit without a unit": (
        ("plan", "life.toml", "--fit", "24"),
        ("'24' is no amount of memory: write a number above 0 and a unit", "such as 24GiB"),
    ),
    "--fit of an unknown unit": (
        ("plan", "life.toml", "--fit", "24 GX"),
        ("'24 GX' is no amount of memory",),
    ),
    "show an unknown method": (
        ("show", "adamv"),
        ("there is no method, no paper and no artifact 'adamv' (did you mean 'adamw'?)",),
    ),
    "show a file that is not there": (("show", "./none.py"), ("there is no file", "none.py")),
    "show a file that is no Python": (("show", "./broken.py"), ("broken.py, line 1: this is no Python",)),
    "show a file without a method": (
        ("show", "./nothing.py"),
        ("nothing.py: no class that derives from a kind of method",),
    ),
    "list an unknown kind": (
        ("list", "--kind", "Updat"),
        ("there is no kind 'Updat' (did you mean 'Update'?)",),
    ),
    "list an unknown folder": (
        ("list", "--folder", "optims"),
        ("there is no folder 'optims' (did you mean 'optim'?)",),
    ),
    "new with a bad name": (
        ("new", "MyMethod", "--kind", "Update"),
        ("'MyMethod' is no name in snake_case",),
    ),
    "new of an unknown kind": (
        ("new", "my_method", "--kind", "Updat"),
        ("there is no kind 'Updat' (did you mean 'Update'?)",),
    ),
    "new with a name that is taken": (
        ("new", "adamw", "--kind", "Update"),
        ("there is a method 'adamw' already",),
    ),
    "new in an unknown folder": (
        ("new", "my_method", "--kind", "Update", "--folder", "x"),
        ("there is no folder 'x'",),
    ),
    "new outside a checkout": (("new", "my_method", "--kind", "Update"), ("is no checkout of Trainwright",)),
    "check an unknown method": (("check", "adamv"), ("there is no method 'adamv' (did you mean 'adamw'?)",)),
    "export an unknown stage": (
        ("export", "bsae", "out"),
        ("store: no artifact 'bsae' (did you mean 'base'?)",),
    ),
    "export a corpus": (("export", "corpus", "out"), ("is no Hugging Face checkpoint",)),
    "export over something": (("export", "base", "texts"), ("texts is there already and no empty folder",)),
    "export in an unknown dtype": (
        ("export", "base", "out", "--dtype", "int4"),
        ("dtype must be float32, bfloat16 or float16, not 'int4'",),
    ),
    "generate from an unknown stage": (
        ("generate", "bsae", "--prompt", "x"),
        ("store: no artifact 'bsae' (did you mean 'base'?)",),
    ),
    "generate from a corpus": (("generate", "corpus", "--prompt", "x"), ("is no Hugging Face checkpoint",)),
    "generate nothing": (
        ("generate", "base", "--prompt", "x", "--tokens", "0"),
        ("tokens must be 1 or more",),
    ),
    "generate with a template that is not there": (
        ("generate", "base", "--prompt", "x", "--chat"),
        ("no chat template; leave out --chat",),
    ),
    "store show of nothing": (
        ("store", "show", "bsae"),
        ("store: no artifact 'bsae' (did you mean 'base'?)",),
    ),
    "store rm of nothing": (("store", "rm", "bsae"), ("store: no artifact 'bsae' (did you mean 'base'?)",)),
    "store rm of what others came from": (
        ("store", "rm", "base"),
        ("came from; remove those first, or say --force",),
    ),
    "a store that is not there": (
        ("store", "show", "base", "--store", "none"),
        ("none: no artifact 'base'",),
    ),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_refuses(name: str, lived: Home, say: Say) -> None:
    (lived.folder / "broken.toml").write_text("title = 1\n[[stage\n")
    (lived.folder / "latin.toml").write_bytes("title = 'über'".encode("latin-1"))
    (lived.folder / "empty.toml").touch()
    (lived.folder / "broken.py").write_text("x = (\n")
    (lived.folder / "nothing.py").write_text("x = 1\n")
    lived.write()
    before = lived.artifacts()
    words, told = COMMANDS[name]
    check_refused(say(*words), *told)
    lived.check_store()
    assert lived.artifacts() == before and not (lived.folder / "out").exists()


@pytest.mark.parametrize(
    "words",
    [
        ("rum",),
        ("run",),
        ("run", "life.toml", "--sote", "x"),
        ("list", "--kind"),
        ("store", "mv"),
        ("generate", "base"),
    ],
)
def test_a_command_that_is_none_shows_its_usage(words: tuple[str, ...], say: Say) -> None:
    answer = say(*words)
    assert answer.code == 2 and "Error" in answer.err and "Traceback" not in answer.err


@pytest.mark.slow
def test_too_little_memory_is_said_by_the_plan(home: Home, say: Say, monkeypatch: pytest.MonkeyPatch) -> None:
    home.write()
    monkeypatch.setattr(hardware, "memory_bytes", lambda: 1e8)
    check_refused(
        say("plan", "life.toml", "--store", "untouched"),
        BASE,
        "GiB of memory are needed and 0.1 GiB are there: raise accumulate",
    )


def test_another_rank_speaks_after_rank_0(home: Home, say: Say, monkeypatch: pytest.MonkeyPatch) -> None:
    """It waits, so that it is ended if rank 0 has failed too; if not, it is heard."""
    waited: list[float] = []
    monkeypatch.setattr(time, "sleep", waited.append)
    for rank, seconds in (("0", []), ("1", [cli_ends.RANK_0_FIRST])):
        monkeypatch.setenv("RANK", rank)
        check_refused(say("plan", "lief.toml"), "there is no recipe lief.toml")
        assert waited == seconds


@pytest.mark.slow
@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_keeps_the_last_checkpoint(
    error: int, lived: Home, say: Say, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first save succeeds, the second finds no room; then, with room, the run goes on from the first."""
    lived.write(("steps = 6", f"steps = 6\nseed = {error}"))
    calls, write = [], parts.write

    def full(part: Path, tensors: Any) -> Any:
        calls.append(part.name)
        if calls.count("step-00000004.tmp") == 1:
            raise OSError(error, "No space left on device", str(part))
        return write(part, tensors)
    monkeypatch.setattr(parts, "write", full)
    before = lived.artifacts()
    check_refused(
        say("run", "life.toml"),
        "No space left on device",
        "make room or choose another --store; what was saved before is kept",
    )
    lived.check_store()
    assert lived.artifacts() == before
    monkeypatch.undo()
    answer = say("run", "life.toml")
    assert answer.code == 0 and "resumed" in answer.out


# ---- the program itself ------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("run", "life.toml"), f"{BASE}: steps must be a whole number, not 'six'"),
        (("show", "adamv"), "did you mean 'adamw'"),
        (("rum",), "No such command 'rum'"),
    ],
)
def test_as_a_process(
    words: tuple[str, ...], told: str, home: Home, command: Callable[..., CompletedProcess[str]]
) -> None:
    home.write(("steps = 6", 'steps = "six"'))
    done = command(*words, cwd=home.folder)
    assert done.returncode == 2 and told in done.stderr and "Traceback" not in done.stderr and not done.stdout


def test_there_are_many() -> None:
    assert len(PLANNED) + len(CORPORA) + len(RUN) + len(COMMANDS) >= 150
