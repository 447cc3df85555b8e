"""Completion by pressing TAB in real shells, through the script that `sae --show-completion` prints."""

import fcntl
import os
import pty
import re
import select
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

BIN = Path(sys.executable).parent
SAE = "sae() { printf '<%s>' \"$@\"; echo; }"
SAE_FISH = "function sae; printf '<%s>' $argv; echo; end"
START = {
    "bash": (["bash", "--norc", "--noprofile", "-i"], f"source <(sae --show-completion); {SAE}"),
    "zsh": (["zsh", "-f", "-i"], f"autoload -U compinit; compinit -u; source <(sae --show-completion); {SAE}"),
    "fish": (
        ["fish", "--no-config", "-i"],
        "sae --show-completion | source; function sae; printf '<%s>' $argv; echo; end",
    ),
}
"""How each shell begins, and a function in the place of `sae` that says with which words it was called."""
COMPLETED = {
    "train sae=batc": "<train><sae=batchtopk>",
    "train orthogonality=deco": "<train><orthogonality=decomposable>",
    "train name=x model=tiny train.determ": "<train><name=x><model=tiny><train.deterministic=>",
    "train train.deterministic=t": "<train><train.deterministic=true>",
    "train experiment=three_f": "<train><experiment=three_features>",
    "train train.l": "<train><train.l>",
    "train train.lr": "<train><train.lr=>",
    "train sparsity.kind=tan": "<train><sparsity.kind=tanh>",
    "sweep sae=relu,batc": "<sweep><sae=relu,batchtopk>",
    "sweep smok": "<sweep><smoke>",
    "sweep gri": "<sweep><grids>",
    "sweep grids/own": "<sweep><grids/own.yaml>",
    "train --config-dir own sae=min": "<train><--config-dir><own><sae=mine>",
    "report expe": "<report><experiments>",
    "eval experiments/0": "<eval><experiments/0a1b2c3d4e>",
    "eval experiments eval.comp": "<eval><experiments><eval.composition=>",
    "dashboard experiments eval.word": "<dashboard><experiments><eval.words=>",
    "config cp sae/batc": "<config><cp><sae/batchtopk>",
    "config ls orth": "<config><ls><orthogonality>",
}
"""What is typed before TAB, and the words that the command then gets."""


class Shell:
    """An interactive shell at the other end of a terminal."""

    def __init__(self, name: str, folder: Path) -> None:
        command, script = START[name]
        self.terminal, inner = pty.openpty()
        termios.tcsetwinsize(inner, (40, 400))
        environment = os.environ | {"PATH": f"{BIN}:{os.environ['PATH']}", "HOME": str(folder), "TERM": "dumb"}
        self.process = subprocess.Popen(
            command,
            cwd=folder,
            env=environment,
            stdin=inner,
            stdout=inner,
            stderr=inner,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )
        os.close(inner)
        self.write(f"{script}\nsae ready\n")
        assert self.words() == "<ready>"

    def write(self, text: str) -> None:
        os.write(self.terminal, text.encode())

    def words(self) -> str:
        """Return the words that `sae` was called with, each in <>."""
        shown, end = "", time.monotonic() + 60
        while not (found := re.search(r"\n(<.*>)\r?\n", shown)):
            ready, _, _ = select.select([self.terminal], [], [], max(0, end - time.monotonic()))
            assert ready, f"nothing more after {shown!r}"
            shown += re.sub(r"\x1b[^a-zA-Z]*[a-zA-Z]", "", os.read(self.terminal, 65536).decode(errors="replace"))
        return found[1]

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.terminal)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run, a grid file and a configuration folder."""
    folder = tmp_path_factory.mktemp("completion")
    for file in ("experiments/0a1b2c3d4e/config.yaml", "grids/own.yaml", "own/sae/mine.yaml"):
        (folder / file).parent.mkdir(parents=True)
        (folder / file).touch()
    return folder


@pytest.fixture(
    scope="module", params=["bash", *(pytest.param(one, marks=pytest.mark.shells) for one in ("zsh", "fish"))]
)
def shell(request: pytest.FixtureRequest, folder: Path) -> Iterator[Shell]:
    shell = Shell(request.param, folder)
    yield shell
    shell.close()


@pytest.mark.parametrize("typed", COMPLETED)
def test_tab(shell: Shell, typed: str) -> None:
    shell.write(f"sae {typed}\t\n")
    assert shell.words().replace("/>", ">") == COMPLETED[typed]  # zsh takes the slash back at the end of a line
