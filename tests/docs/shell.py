"""Blocks in a real shell: with programs that only record their arguments, or in a copy of the checkout."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from tests.docs.blocks import ROOT, Block
from tests.test_recipes import BRIEF

PROGRAMS = [
    "sae",
    "python",
    "python3",
    "pip",
    "make",
    "wandb",
    "torchrun",
    "git",
    "ray",
    "squeue",
    "scancel",
    "sinfo",
    "hf",
]
PROGRAMS += ["ls", "rm", "cp", "mkdir", "cat", "head", "sbatch", "truncate"]
COPIED = ["sae_cli", "conf", "sweeps", "tests", "docs", "README.md", "CONTRIBUTING.md", "pyproject.toml"]
END = "\x1e"
BASH = str(shutil.which("bash"))


def recorded(text: str, folder: Path) -> list[list[str]]:
    """Return the words of every command of a shell text, as the programs get them; none of them is run."""
    programs, log = folder / "programs", folder / "log"
    if not programs.exists():
        programs.mkdir()
        script = programs / "record"
        script.write_text(f"#!{BASH}\nprintf '%s\\0' \"${{0##*/}}\" \"$@\" >> {log}\nprintf '{END}' >> {log}\n")
        script.chmod(0o755)
        for name in PROGRAMS:
            (programs / name).symlink_to("record")
    log.write_text("")
    builtins = "cd() { :; }; source() { :; }\n"
    done = subprocess.run(
        [BASH, "-r", "-c", builtins + text], env={"PATH": str(programs)}, cwd=folder, capture_output=True, text=True
    )
    assert done.returncode == 0 and not done.stderr, done.stderr
    return [record.split("\0")[:-1] for record in log.read_text().split(END)[:-1]]


class Checkout:
    """A copy of the checkout in which blocks run; `sae cache`, `train` and `sweep` get the settings of a few rows.

    What a page itself sets for `cache` and `train` holds.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "checkout"
        for name in COPIED:
            copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
            self.folder.mkdir(exist_ok=True)
            copy(ROOT / name, self.folder / name)
        for name in ("conf", "sweeps"):  # an installation maps them to the real checkout
            (self.folder / "sae_cli" / name).symlink_to(self.folder / name)
        programs = folder / "bin"
        programs.mkdir()
        brief = " ".join([*BRIEF, "model.context=32", "eval.contexts=1"])
        self._program(
            programs / "sae",
            f'case "$1 $2" in "cache verify") ;; sweep*) set -- "$@" {brief} ;; cache*|train*) first=$1; shift; set -- $first {brief} "$@" ;; esac',
            "-m sae_cli",
        )
        self._program(programs / "python", "", "")
        settings = {
            "WANDB_MODE": "offline",
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(self.folder),
        }
        settings |= {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
        self.environment = {**os.environ, **settings, "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}"}

    def _program(self, file: Path, prepare: str, words: str) -> None:
        file.write_text(f"#!/bin/sh\n{prepare}\nexec '{sys.executable}' {words} \"$@\"\n")
        file.chmod(0o755)

    def run(self, block: Block) -> None:
        """Do what a block says; AssertionError with what was printed if it fails."""
        if block.note or (block.language in ("text", "json", "yaml") and not block.title):
            return
        if block.title:
            file = self.folder / block.title
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(block.text)
            return
        words = {"sh": [BASH, "-euo", "pipefail", "-s"], "python": ["python", "-"], "diff": ["git", "apply", "-"]}
        done = subprocess.run(
            words[block.language],
            input=block.text,
            env=self.environment,
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=600,
        )
        assert done.returncode == 0, f"{block}: {done.stdout[-4000:]}"
