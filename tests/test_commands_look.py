"""`sae show` as a command: its options, its streams, its exit codes."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from sae_cli.cli import app
from tests.reporting import fake


@pytest.fixture
def runs(tmp_path):
    for index in range(2):
        fake.write_run(tmp_path / "runs" / str(index), fake.config(weight=1.0 + index))
    return tmp_path / "runs"


def show(*words: str | Path, **environment: str) -> Result:
    return CliRunner(env=environment, charset="utf-8").invoke(app, ["show", *map(str, words)])


def test_one_run_or_several_in_the_terminals_width(runs):
    several = show(runs, COLUMNS="70").stdout
    assert several.startswith("2 points: 2 done\n\n   run  lambda")
    assert "┬" in several
    assert max(map(len, several.splitlines()[:-1])) <= 70
    one = show(runs / "0", COLUMNS="200").stdout
    assert one.startswith(f"run                   {runs / '0'}\nstate ")
    assert show(runs / "0", runs / "1", COLUMNS="70").stdout.splitlines()[:-1] == several.splitlines()[:-1]


def test_ascii_and_json(runs):
    text = show(runs, "--ascii").stdout
    assert text.isascii()
    assert "+--" in text
    data = json.loads(show(runs, "--json").stdout)
    assert [row["runs"] for row in data["rows"]] == [["0"], ["1"]]
    assert json.loads(show(runs / "0", "--json").stdout)["run"] == "0"


def test_a_terminal_that_is_not_utf8_gets_ascii(runs):
    command = [sys.executable, "-m", "sae_cli", "show", str(runs)]
    environment = {"PYTHONIOENCODING": "latin-1", "PATH": "/usr/bin:/bin"}
    ended = subprocess.run(command, capture_output=True, env=environment, cwd=Path(__file__).parent.parent)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.isascii()


@pytest.mark.parametrize("words", [["nowhere"], ["{runs}", "--metrics", "l0,fuv"], ["{runs}", "--sort", "x"]])
def test_mistakes_are_one_line(runs, words):
    result = show(*(word.format(runs=runs) for word in words))
    assert result.exit_code == 2
    assert len(result.stderr.splitlines()) == 1


def test_watch_draws_until_every_run_is_finished(runs, monkeypatch):
    status = runs / "0" / "status.json"
    status.write_text(status.read_text().replace("done", "running"))
    waits = []

    def finish(seconds):
        waits.append(seconds)
        status.write_text(status.read_text().replace("running", "done"))

    monkeypatch.setattr(time, "sleep", finish)
    result = show(runs, "--watch", "7")
    assert waits == [7]
    assert result.stdout.count("2 points: ") == 2
    assert "\x1b" not in result.stdout


def test_interrupting_watch_leaves_with_130(runs, monkeypatch):
    (runs / "0" / "status.json").unlink()

    def interrupt(seconds):
        raise KeyboardInterrupt

    monkeypatch.setattr(time, "sleep", interrupt)
    assert show(runs, "--watch", "1").exit_code == 130


def test_it_starts_without_torch_or_pandas(runs):
    code = (
        "import sys; from typer.testing import CliRunner; from sae_cli.cli import app; "
        f"assert CliRunner().invoke(app, ['show', {str(runs)!r}]).exit_code == 0; "
        "print({'torch', 'pandas', 'plotly', 'wandb', 'scipy.stats'} & set(sys.modules))"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ended.stdout == "set()\n", ended.stderr
