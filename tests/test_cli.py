"""The command line: every command, its help, how fast it starts, and a tiny life from beginning to end."""
from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner, Result

import trainwright
from tests.conftest import LIFE, write_texts
from trainwright.cli import app
from trainwright.core import registry
from trainwright.core.errors import UserError
from trainwright.core.method import KINDS

Command = Callable[..., subprocess.CompletedProcess[str]]
HEAVY = ("torch", "transformers", "daft", "numpy", "pyarrow", "matplotlib")


def commands() -> dict[str, Any]:
    def found(command: Any, path: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
        inner = getattr(command, "commands", None)
        if inner is None:
            yield " ".join(path), command
        for name, one in (inner or {}).items():
            yield from found(one, (*path, name))
    return dict(found(typer.main.get_command(app), ()))


def invoke(*words: Any, cwd: Path | None = None) -> Result:
    """A command in this process. What a mistake says is tested in ``test_bad_input.py``."""
    before = Path.cwd()
    os.chdir(cwd or before)
    try:
        result = CliRunner(env={"COLUMNS": "200", "NO_COLOR": "1"}).invoke(app, [str(w) for w in words])
    finally:
        os.chdir(before)
    if isinstance(result.exception, UserError):
        raise result.exception
    assert result.exit_code == 0, f"{result.output}\n{result.exception!r}"
    return result


# ---- help and start-up ------------------------------------------------------------------------------


def test_the_commands_are_those_that_are_promised() -> None:
    promised = {"audit", "init", "schema", "run", "plan", "compare", "papers", "reproduce", "suite", "map",
                "list", "show", "new", "check", "export", "generate", "fit-law", "smallest", "speed-up",
                "store ls", "store show", "store rm", "store verify"}
    assert set(commands()) == promised


@pytest.mark.parametrize("name", ["", "store", *sorted(commands())])
def test_help_is_worth_reading(name: str) -> None:
    printed = invoke(*name.split(), "--help").stdout
    assert "Usage: " in printed
    if name in commands():
        for parameter in commands()[name].params:
            assert parameter.help and parameter.opts[0].upper() in printed.upper(), parameter.name


@pytest.mark.slow
def test_no_words_show_the_help(command: Command, tmp_path: Path) -> None:
    done = command(cwd=tmp_path)
    assert "Usage: " in done.stdout + done.stderr and "Traceback" not in done.stderr


LIGHT = f"""
import sys
from trainwright import cli
try:
    cli.main()
except SystemExit as end:
    assert not end.code
print([m for m in {HEAVY!r} if m in sys.modules], file=sys.stderr)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "words", ["--help", "list", "list --search adam", "show adamw", "store ls", "run --help", "init"])
def test_what_is_light_imports_nothing_heavy(words: str, command: Command, tmp_path: Path) -> None:
    done = command(*words.split(), cwd=tmp_path, python=("-c", LIGHT))
    assert done.returncode == 0 and done.stderr.strip().endswith("[]"), done.stderr


PARSING = f"""
import sys
parsed = []
def heard(event, args):
    if event == "compile" and args[1] == "<unknown>":
        parsed.append(args[1])
sys.addaudithook(heard)
{LIGHT}
ours = [m for m in sys.modules if m.startswith("trainwright.") and m.split(".")[1] in {registry.FOLDERS!r}]
print(len(parsed), ours, file=sys.stderr)
"""


@pytest.mark.slow
def test_list_parses_each_method_once_and_imports_none(
        command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted, not timed: the second command reads what the first one kept, and parses nothing."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    runs = [command("list", cwd=tmp_path, python=("-c", PARSING)) for _ in range(2)]
    counts = [run.stderr.strip().splitlines()[-1].split(maxsplit=1) for run in runs]
    assert int(counts[0][0]) >= len(registry.cards()) and int(counts[1][0]) == 0
    assert [ours for _, ours in counts] == ["[]"] * 2 and runs[0].stdout == runs[1].stdout


# ---- methods ----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_list_and_show_know_every_method() -> None:
    listed = invoke("list").stdout
    for name, card in registry.cards().items():
        assert name in listed
        printed = invoke("show", name).stdout
        assert card.kind in printed and all(f[0] in printed for f in card.settings)
    for kind in KINDS:
        lines = invoke("list", "--kind", kind.lower()).stdout.splitlines()
        listed = {line.split()[0] for line in lines if re.match(r"  \w", line)}
        assert listed == {n for n in registry.cards() if issubclass(registry.find(n), KINDS[kind])}, kind
    merging = invoke("list", "--folder", "merge").stdout
    assert "adamw" not in merging and "slerp" in merging
    searched = invoke("list", "--search", "warm-up decay").stdout
    assert "wsd" in searched and "slerp" not in searched


MINE = '''"""Mine alone."""
from trainwright.core.method import Weigh


class Mine(Weigh):
    by: float = 2.0
    """How much."""
'''


def test_show_reads_a_file_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(MINE)
    printed = invoke("show", "./mine.py", cwd=tmp_path).stdout
    assert "Mine alone." in printed and "How much." in printed and "Weigh" in printed


COPIED = """
import sys
sys.path.insert(0, 'src')
from trainwright.cli import main
from trainwright.core import registry
from trainwright.core.method import KINDS
for kind in sys.argv[1:]:
    cls = registry.find('my_' + kind.lower())
    assert KINDS[kind] in cls.__bases__ and cls(**cls.example)
sys.argv = ['trainwright', 'list', '--search', 'my_']
main()
"""


@pytest.mark.slow
def test_new_methods_are_listed_imported_and_tested(tmp_path: Path, command: Command) -> None:
    """A copy of the package takes one new method of each kind; each has its three files and passes ruff."""
    source = Path(trainwright.__file__).parent
    shutil.copytree(source, tmp_path / "src" / "trainwright", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(source.parents[1] / "pyproject.toml", tmp_path)
    made = {}
    for kind in KINDS:
        printed = invoke("new", f"my_{kind.lower()}", "--kind", kind, "--root", tmp_path).stdout.split()
        made[kind] = [Path(w) for w in printed if w != "wrote"]
        assert [f.relative_to(tmp_path).parts[0] for f in made[kind]] == ["src", "tests", "src"]
        assert made[kind][2].parent.name == "papers" and made[kind][2].suffix == ".toml"
    done = command(*KINDS, cwd=tmp_path, python=("-c", COPIED))
    assert done.returncode == 0 and all(f"my_{kind.lower()}" in done.stdout for kind in KINDS), done.stderr
    written = [f for files in made.values() for f in files if f.suffix == ".py"]
    done = command("check", *written, cwd=tmp_path, python=("-m", "ruff"))
    assert done.returncode == 0, done.stdout


# ---- a tiny life ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("cli")
    write_texts(made / "texts")
    (made / "life.toml").write_text(LIFE)
    return made


@pytest.fixture(scope="module")
def lived(folder: Path) -> tuple[Path, str, str]:
    """The folder after a run, and what the first and the second run said."""
    first, again = (invoke("run", "life.toml", cwd=folder).stdout for _ in range(2))
    return folder, first, again


def artifact(folder: Path, stage: str) -> Path:
    (found,) = folder.glob(f"store/{stage}-*")
    return found


@pytest.mark.slow
def test_a_plan_before_anything_is_there(folder: Path) -> None:
    printed = invoke("plan", "life.toml", "--store", "planned", cwd=folder).stdout
    for word in ("corpus", "base", "adapt", "merged", "judge", "next_token", "clip_gradients", "adamw", "wsd",
                 "interpolate", "held_out"):
        assert word in printed
    assert not (folder / "planned").exists()


@pytest.mark.slow
def test_a_run_makes_every_stage_once(lived: tuple[Path, str, str]) -> None:
    folder, first, second = lived
    for stage in ("corpus", "base", "adapt", "merged", "judge"):
        manifest = json.loads((artifact(folder, stage) / "manifest.json").read_text())
        assert manifest["stage"] == stage and manifest["seconds"] >= 0
        assert manifest["versions"]["torch"] == torch.__version__
        assert f"{stage:<8} cached" in second and f"{stage:<8} cached" not in first
    assert "report: " in first and (folder / "store" / "reports" / "life" / "index.html").is_file()
    assert "forgetting" in first and "gain" in first, "the table of the evaluation is printed"
    assert "⟦" in first, "an example with what is trained is printed"


@pytest.mark.slow
def test_a_models_artifact_is_a_checkpoint_of_transformers(lived: tuple[Path, str, str]) -> None:
    folder = artifact(lived[0], "base")
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert model.config.vocab_size == len(tokenizer) == 300
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [r["step"] for r in rows] == [1, 2, 3, 4, 5, 6] and rows[-1]["loss"] < rows[0]["loss"]
    stages = ("base", "adapt", "merged")
    base, adapt, merged = (load_file(artifact(lived[0], s) / "model.safetensors") for s in stages)
    for name, value in merged.items():
        assert torch.allclose(value, (base[name] + adapt[name]) / 2, atol=1e-7)


@pytest.mark.slow
def test_only_what_depends_on_a_change_runs_again(lived: tuple[Path, str, str], tmp_path: Path) -> None:
    folder = shutil.copytree(lived[0], tmp_path / "own")
    weights = "merged.methods.interpolate.weights=[0.25, 0.75]"
    printed = invoke("run", "life.toml", "--set", weights, cwd=folder).stdout
    cached = [printed.count(f"{s:<8} cached") for s in ("corpus", "base", "adapt", "merged", "judge")]
    assert cached == [1, 1, 1, 0, 0]
    printed = invoke("run", "life.toml", "--set", "base.save_every=1", "--set", "title='renamed'",
                  cwd=folder).stdout
    assert printed.count("cached") == 5, "neither how often to save nor a title changes a result"
    printed = invoke("plan", "life.toml", "--set", "base.methods.adamw.lr=2e-2", cwd=folder).stdout
    assert "lr=0.02" in printed.replace(" ", "")


@pytest.mark.slow
def test_a_changed_text_is_read_again(lived: tuple[Path, str, str], tmp_path: Path) -> None:
    shutil.copytree(lived[0] / "texts", tmp_path / "texts")
    text = (lived[0] / "life.toml").read_text().split('[[stage]]\nname = "base"')[0]
    (tmp_path / "life.toml").write_text(text)
    assert "cached" not in invoke("run", "life.toml", cwd=tmp_path).stdout
    with (tmp_path / "texts" / "prose" / "00.txt").open("a") as file:
        file.write("one more line\n")
    assert "cached" not in invoke("run", "life.toml", cwd=tmp_path).stdout
    assert "cached" in invoke("run", "life.toml", cwd=tmp_path).stdout


def test_the_store_is_shown_and_thinned(lived: tuple[Path, str, str], tmp_path: Path) -> None:
    store = tmp_path / "store"
    shutil.copytree(lived[0] / "store", store)
    printed = invoke("store", "ls", "--store", store).stdout
    assert all(f.parent.name in printed for f in store.glob("*/manifest.json"))
    shown = json.loads(invoke("store", "show", "adapt", "--store", store).stdout)
    assert shown["inputs"]["model"][0]["stage"] == "base" and shown["settings"]["methods"][2]["lr"] == 0.01
    for name in ("judge", "merged"):
        assert "removed" in invoke("store", "rm", name, "--store", store).stdout
    invoke("store", "rm", "base", "--force", "--store", store)
    assert {f.name.split("-")[0] for f in store.glob("*-*")} == {"corpus", "adapt"}
    empty = invoke("store", "ls", "--store", tmp_path / "none").stdout
    assert "holds no artifact yet" in " ".join(empty.split())


@pytest.mark.slow
def test_export_and_generate(lived: tuple[Path, str, str], tmp_path: Path) -> None:
    folder = lived[0]
    invoke("export", "base", tmp_path / "out", "--dtype", "bfloat16", cwd=folder)
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out").dtype == torch.bfloat16
    words = ("--prompt", "the sea", "--tokens", "12", "--seed", "5")
    names = ("base", "base", artifact(folder, "base").name, artifact(folder, "base"))
    said = [invoke("generate", name, *words, cwd=folder).stdout for name in names]
    assert len(set(said)) == 1 and said[0].startswith("the sea")
    assert invoke("generate", tmp_path / "out", *words, cwd=folder).stdout.startswith("the sea")
    likeliest = invoke("generate", "base", *words, "--temperature", "0", cwd=folder).stdout
    chain = ("--decode", "nucleus 1.0", "--decode", "nucleus p=0.9, min_p p=1.0")
    assert invoke("generate", "base", *words, *chain, cwd=folder).stdout == likeliest != said[0]
    for wrong, sentence in (("wsd", "--decode: wsd does not shape what is drawn; methods that do are"),
                            ("nucleos p=0.9", "--decode 'nucleos p=0.9': there is no method 'nucleos'"),
                            ("nucleus,", "write METHOD key=value"), ("nucleus p=2.0", "p must be above 0")):
        with pytest.raises(UserError, match=sentence):
            invoke("generate", "base", *words, "--decode", wrong, cwd=folder)


@pytest.mark.slow
def test_check_tells_of_a_method(tmp_path: Path) -> None:
    printed = invoke("check", "clip_gradients", cwd=tmp_path).stdout
    assert "passed" in printed and "FAILED" not in printed


COMPARED = ("--stage", "adapt", "--metric", "loss/code", "--arm", "full:")


@pytest.mark.slow
@pytest.mark.parametrize(("words", "said"), [
    ((*COMPARED,), "needs two arms"),
    ((*COMPARED, "--arm", "same:"), "do not differ"),
    ((*COMPARED, "--arm", "a: lora", "--budget", "tokens=1"), "too small for one step"),
    ((*COMPARED, "--arm", "a: lora", "--metric", "fun/code"), "say better"),
    ((*COMPARED, "--arm", "a: lora", "--seeds", "1"), "two runs at least"),
    (("--stage", "adapt", "--arm", "full:"), "--metric"),
    ((*COMPARED, "--arm", "a: lora", "--ladder"), "needs a table .compare.ladder. with the sizes"),
    ((*COMPARED, "--arm", "a: lora", "--until-decided", "--most-seeds", "2"), "fewer than 3"),
])
def test_a_wrong_comparison_is_found_before_anything_runs(
        words: tuple[str, ...], said: str, life: Path) -> None:
    with pytest.raises(UserError, match=said):
        invoke("compare", life, *words, "--store", life.parent / "store")
    assert not list((life.parent / "store").glob("*/manifest.json"))


@pytest.mark.slow
def test_a_dry_run_says_what_would_run_and_runs_nothing(life: Path) -> None:
    printed = invoke("compare", life, *COMPARED, "--arm", "lora: lora rank=2", "--seeds", "3", "--dry-run",
                  "--store", life.parent / "store").stdout
    assert "lora" in printed and "estimated" in printed
    assert "shared by all: corpus (once), base (once)" in " ".join(printed.split())
    assert not list((life.parent / "store").glob("*/manifest.json"))


@pytest.mark.slow
def test_a_comparison_of_one_s_own_leaves_a_table_a_page_and_a_result(life: Path) -> None:
    words = ("compare", life, *COMPARED, "--arm", "lora: lora rank=2", "--seeds", "2", "--store",
             life.parent / "store")
    printed = invoke(*words).stdout
    folder = life.parent / "store" / "comparisons" / "life"
    result = json.loads((folder / "result.json").read_text())
    assert {"budget", "seeds", "arms", "comparisons"} <= set(result)
    assert {a["name"] for a in result["arms"]} == {"full", "lora"} and "index.html" in printed
    assert (folder / "index.html").is_file() and (folder / "difference.png").is_file()
    costs = {r["metric"]: r for r in result["comparisons"] if r["arm"] == "lora"}
    assert costs["trainable_parameters"]["verdict"] == "better" and costs["trainable_parameters"]["exact"]
    weights = 4 * next(a["parameters"] for a in result["arms"] if a["name"] == "lora")
    assert len(costs["seconds_per_step"]["values"]) >= 3 and costs["peak_memory_bytes"]["arm_mean"] > weights


@pytest.mark.parametrize(("words", "says"), [
    (("papers", "--verdict", "wrong"), "there is no verdict 'wrong'"),
    (("suite", "pretrian", "--aa"), "there is no suite 'pretrian' (did you mean 'pretrain'?)"),
    (("suite", "pretrain"), "say what is measured: --tune, --tricks or --aa"),
    (("suite", "merge", "--tune"), "the suite merge has no search: tuning/merge.toml is not there"),
    (("suite", "pretrain", "--aa", "--set", "seed=1"), "--set makes another suite: name another folder"),
    (("reproduce",), "name the paper whose claims are measured, or say --all"),
    (("reproduce", "paca", "--all"), "name the paper whose claims are measured, or say --all"),
    (("reproduce", "pacca"), "there is no paper 'pacca' (did you mean 'paca'?)"),
    (("reproduce", "pbt"), "pbt states no claim that could be tested"),
    (("reproduce", "paca", "--claim", "9"), "paca has 3 claims, and --claim 9 is none of them"),
    (("reproduce", "quad", "--claim", "3"), "quad: needs scale, as models of this size guess"),
    (("show", "pacaa"), "there is no method, no paper and no artifact 'pacaa' (did you mean 'paca'?)"),
])
def test_what_is_wrong_with_a_paper_is_said(words: tuple[str, ...], says: str) -> None:
    with pytest.raises(UserError, match=re.escape(says)):
        invoke(*words)


def test_papers_are_listed_shown_and_mapped(tmp_path: Path) -> None:
    listed = invoke("papers", "--search", "partial connection").stdout
    assert "paca" in listed and "hft" not in listed
    both = invoke("show", "paca").stdout
    assert "Surgery" in both and "PaCA: Partial Connection" in both and "3 claims" in both
    assert "arxiv.org/abs/1711.09846" in invoke("show", "pbt").stdout
    said = invoke("reproduce", "--all", "--dry-run", "--evidence", tmp_path).stdout
    assert "claims of" in said and "comparisons: about" in said and not list(tmp_path.iterdir())
    assert "  pretrain: " in said and "not timed yet" in said
    invoke("map", "--out", tmp_path / "map.html")
    assert "paca" in (tmp_path / "map.html").read_text()
