"""The page about several machines: its scripts are bash, torchrun takes their options, its recipe is one."""
from __future__ import annotations

import re
import shlex
import subprocess
import tomllib
from pathlib import Path

import pytest
from torch.distributed.run import get_args_parser

from trainwright.core.recipe import parse

PAGE = (Path(__file__).parents[1] / "docs" / "several-machines.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, flags=re.M | re.S)


SCRIPTS = blocks("bash")
LINES = [line for script in SCRIPTS for line in script.replace("\\\n", " ").splitlines()]


@pytest.mark.parametrize("script", SCRIPTS)
def test_bash_reads_it(script: str) -> None:
    done = subprocess.run(["bash", "-n"], input=script, text=True, capture_output=True)
    assert done.returncode == 0 and not done.stderr, done.stderr


def test_torchrun_takes_the_options() -> None:
    named = [line[line.index("torchrun "):].rstrip(" &") for line in LINES if "torchrun " in line]
    assert len(named) == 3
    for line in named:
        words = shlex.split(line.replace('"$SLURM_NNODES"', "2").replace("$SLURM_JOB_ID", "17"))
        given = get_args_parser().parse_args(words[1:])
        assert given.module and given.training_script == "trainwright" and given.nnodes == "2"
        assert given.training_script_args[:2] == ["run", "life.toml"]


def test_slurm_gets_its_options_before_the_first_command() -> None:
    (script,) = [s for s in SCRIPTS if "#SBATCH" in s]
    lines = script.splitlines()
    options = [i for i, line in enumerate(lines) if line.startswith("#SBATCH")]
    assert lines[0] == "#!/bin/bash" and options == list(range(1, len(options) + 1))
    assert all(re.fullmatch(r"#SBATCH --[a-z-]+(=\S+)?", lines[i]) for i in options)


@pytest.mark.parametrize("text", blocks("toml"))
def test_the_recipe_is_one(text: str, tmp_path: Path) -> None:
    assert parse(tomllib.loads(text), tmp_path / "corpus.toml").stages[0].name == "corpus"
