"""The commit of a checkout, read from its files: nothing in a folder is run to find it."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from trainwright.storage.versions import git_commit

ONE, TWO = "1" * 40, "2" * 40


def checkout(folder: Path, head: str = "ref: refs/heads/main\n") -> Path:
    (folder / ".git" / "refs" / "heads").mkdir(parents=True)
    (folder / ".git" / "HEAD").write_text(head)
    return folder


def test_a_branch_a_packed_branch_and_no_branch(tmp_path: Path) -> None:
    loose, packed, detached = (checkout(tmp_path / name) for name in ("loose", "packed", "detached"))
    (loose / ".git" / "refs" / "heads" / "main").write_text(f"{ONE}\n")
    (packed / ".git" / "packed-refs").write_text(
        f"# pack-refs with: peeled\n{ONE} refs/heads/other\n{TWO} refs/heads/main\n"
    )
    (detached / ".git" / "HEAD").write_text(f"{TWO}\n")
    (loose / "recipes").mkdir()
    assert git_commit(loose) == git_commit(loose / "recipes") == ONE
    assert git_commit(packed) == git_commit(detached) == TWO


def test_a_worktree(tmp_path: Path) -> None:
    main = checkout(tmp_path / "main")
    (main / ".git" / "refs" / "heads" / "side").write_text(ONE)
    place = main / ".git" / "worktrees" / "side"
    place.mkdir(parents=True)
    (place / "HEAD").write_text("ref: refs/heads/side\n")
    (place / "commondir").write_text("../..\n")
    (tmp_path / "side").mkdir()
    (tmp_path / "side" / ".git").write_text(f"gitdir: {place}\n")
    assert git_commit(tmp_path / "side") == ONE


@pytest.mark.parametrize(
    "head",
    [
        "",
        "ref: ../../secret",
        "ref: refs/heads/../../../secret",
        "ref: /etc/passwd",
        "x" * 40,
        "ref: refs/heads/none",
        "ref: " * 1000,
        "\x1b[31m",
        ONE[:39],
    ],
)
def test_what_is_no_commit_is_none(head: str, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text(ONE)
    assert git_commit(checkout(tmp_path / "there", head)) is None


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    there = checkout(tmp_path)
    (there / ".git" / "HEAD").unlink()
    os.mkfifo(there / ".git" / "HEAD")
    assert git_commit(there) is None


def test_the_configuration_of_a_folder_is_not_obeyed(tmp_path: Path) -> None:
    """``core.fsmonitor`` names a program that git runs when it is asked for the status."""
    there = checkout(tmp_path)
    (there / ".git" / "refs" / "heads" / "main").write_text(ONE)
    program = tmp_path / "program"
    program.write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\n")
    program.chmod(0o755)
    (there / ".git" / "config").write_text(f'[core]\n\tfsmonitor = "{program}"\n\thooksPath = "{tmp_path}"\n')
    assert git_commit(there) == ONE and not (tmp_path / "ran").exists()


def test_it_is_what_git_says() -> None:
    here = Path(__file__).parents[2]
    if not (here / ".git").exists():
        pytest.skip("no checkout")
    said = subprocess.run(
        ["git", "-C", str(here), "rev-parse", "HEAD"], capture_output=True, text=True
    ).stdout.strip()
    git_commit.cache_clear()
    assert git_commit(here) == said
