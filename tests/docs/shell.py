"""Blocks in a real shell: with programs that only record their arguments, or in a copy of the checkout."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from tests.docs.blocks import ROOT, Block
from tests.docs.server import CLIENT
from tests.test_recipes import BRIEF

PROGRAMS = ["sae", "python", "python3", "pip", "make", "wandb", "torchrun", "ray", "hf"]
PROGRAMS += ["ls", "rm", "cp", "mkdir", "head", "yes", "truncate"]
COPIED = ["sae_cli", "conf", "sweeps", "tests", "docs", "README.md", "CONTRIBUTING.md", "pyproject.toml"]
END = "\x1e"
BASH = str(shutil.which("bash"))
BRIEFLY = """case "$1 $2" in
    "cache verify") ;;
    sweep*) set -- "$@" {0} ;;
    cache*|train*) first=$1; shift; set -- "$first" {0} "$@" ;;
esac
exec '{1}' -IS '{2}' "$@"
"""


def recorded(text: str, folder: Path) -> list[list[str]]:
    """Return the words of every command of a shell text, as the programs get them; none of them is run."""
    programs, log = folder / "programs", folder / "log"
    programs.mkdir()
    script = programs / "record"
    script.write_text(f"#!{BASH}\nprintf '%s\\0' \"${{0##*/}}\" \"$@\" >> {log}\nprintf '{END}' >> {log}\n")
    script.chmod(0o755)
    for name in PROGRAMS:
        (programs / name).symlink_to("record")
    log.write_text("")
    words = [BASH, "-r", "-c", "cd() { :; }; source() { :; }\n" + text]  # -r: nor are files written
    done = subprocess.run(words, env={"PATH": str(programs)}, cwd=folder, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    return [record.split("\0")[:-1] for record in log.read_text().split(END)[:-1]]


class Checkout:
    """A copy of the checkout in which blocks run; `sae cache`, `train` and `sweep` get the settings of a few rows.

    What a page itself sets for `cache` and `train` holds.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.socket, programs = folder / "checkout", folder / "socket", folder / "bin"
        self.server: subprocess.Popen[str] | None = None
        self.folder.mkdir()
        programs.mkdir()
        for name in COPIED:
            copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
            copy(ROOT / name, self.folder / name)
        for name in ("conf", "sweeps"):  # an installation maps them to the real checkout
            (self.folder / "sae_cli" / name).symlink_to(self.folder / name)
        client = folder / "client.py"
        client.write_text(CLIENT.format(str(self.socket)))
        brief = BRIEFLY.format(" ".join([*BRIEF, "model.context=32", "eval.contexts=1"]), sys.executable, client)
        python = f"exec '{sys.executable}' \"$@\"\n"
        for name, text in {"sae": brief, "python": python, "python3": python}.items():
            (programs / name).write_text(f"#!{BASH}\n{text}")
            (programs / name).chmod(0o755)
        settings = {"WANDB_MODE": "offline", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
        settings |= {"PYTHONPATH": str(self.folder), "RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
        self.environment = {**os.environ, **settings, "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}"}

    def run(self, block: Block) -> None:
        """Do what a block says; AssertionError with what was printed if it fails."""
        if block.note or (block.language in ("text", "json", "yaml") and not block.title):
            return
        if block.title.endswith(".py") or block.language == "diff":
            self.close()  # what the server has imported is not what is there any more
        if block.title:
            file = self.folder / block.title
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(block.text)
            return
        if block.language == "sh" and not self.server:
            self._serve()
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

    def _serve(self) -> None:
        words = [sys.executable, "-m", "tests.docs.server", str(self.socket)]
        self.server = subprocess.Popen(words, cwd=self.folder, env=self.environment, stdout=subprocess.PIPE, text=True)
        assert self.server.stdout
        assert self.server.stdout.readline() == "ready\n"

    def close(self) -> None:
        """End the process that answers `sae`."""
        if self.server:
            self.server.kill()
            self.server.communicate()
            self.server = None
            self.socket.unlink()
