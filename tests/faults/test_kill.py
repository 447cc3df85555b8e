"""SIGKILL at random moments: what is there in the end equals, bit for bit, what an uninterrupted command leaves.

SAE_KILLS sets how many kills each command gets (`make faults`: 25, more than 100 in all).
"""

import os
import re
import shutil
from pathlib import Path
from random import Random

import pytest

from tests.faults.processes import run, run_with_kills, timed

pytestmark = pytest.mark.slow
LEFT = re.compile(r"^caches/|/sae\.safetensors$|/cfg\.json$|/eval\.json$|/report\.(html|json)$")
"""Files that must be the same; the others hold times."""
KILLS = int(os.environ.get("SAE_KILLS", "4"))
TINY = ["cache.tokens=3000", "cache.validation_tokens=600", "cache.dir=caches", "tracker=jsonl"]
TRAINING = ["sae.latents=64", "train.tokens=6000", "train.batch=256", "train.checkpoint_every=3", "train.log_every=2"]
COMMANDS = {
    "cache": (["cache", *TINY, "cache.shard_bytes=200000", "cache.shuffle_bytes=500000"], []),
    "train": (["train", *TINY, *TRAINING], [["cache", *TINY]]),
    "sweep": (
        ["sweep", *TINY, *TRAINING, "sparsity.weight=0.5,1,2,4", "eval.contexts=0", "eval.rows=500"],
        [["cache", *TINY]],
    ),
    "eval": (
        ["eval", "runs", "eval.rows=500", "eval.contexts=2"],
        [["cache", *TINY], ["sweep", *TINY, *TRAINING, "sparsity.weight=0.5,1", "--no-eval"]],
    ),
    "report": (
        ["report", "runs"],
        [["cache", *TINY], ["sweep", *TINY, *TRAINING, "sparsity.weight=0.5,1", "eval.contexts=0", "eval.rows=500"]],
    ),
}
"""Each command, and what it needs before."""


def left(folder: Path) -> dict[str, bytes]:
    """Return the content of the LEFT files of a folder, without the minute in which a report was made."""
    kept = {}
    for file in sorted(folder.glob("**/*")):
        name = str(file.relative_to(folder))
        if file.is_file() and file.name != ".lock" and LEFT.search(name):
            kept[name] = re.sub(rb"\d{4}-\d\d-\d\d \d\d:\d\d UTC", b"", file.read_bytes())
    return kept


@pytest.mark.parametrize("command", COMMANDS)
def test_killed_at_random_and_run_again(command: str, tmp_path: Path) -> None:
    words, before = COMMANDS[command]
    fresh, whole = tmp_path / "fresh", tmp_path / "whole"
    fresh.mkdir()
    for earlier in before:
        assert run(earlier, fresh) == 0
    shutil.copytree(fresh, whole)
    seconds = timed(words, whole)
    expected = left(whole)
    assert expected
    random, hits, tries = Random(f"{command} {os.environ.get('SAE_KILL_SEED', 0)}"), 0, 0
    while hits < KILLS and tries < 3 * KILLS:
        killed = tmp_path / f"killed{tries}"
        shutil.copytree(fresh, killed)
        # several kills one after the other, then a new start
        hits += run_with_kills(words, killed, seconds, min(5, KILLS - hits), random)
        tries += 1
        found = left(killed)
        assert found.keys() == expected.keys()
        assert [name for name in expected if found[name] != expected[name]] == []
    assert hits == KILLS
    print(f"{command}: {hits} kills, {tries} times to the end")
