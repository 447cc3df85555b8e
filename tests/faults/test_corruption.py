"""Flipped bits and cut files: each is named by an error or changes nothing that is read; never another number.

SAE_FLIPS sets how many per file (`make faults`: 150, more than 2,000 in all).
"""

import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from sae_cli.cli import app
from sae_cli.dictionary.artifact import load_sae
from sae_cli.errors import UserError
from sae_cli.runs.directory import RunDirectory
from sae_cli.store.contexts import read_contexts, read_tokens
from sae_cli.store.loader import CacheReader
from sae_cli.training.checkpoint import common_step

pytestmark = pytest.mark.slow
FLIPS = int(os.environ.get("SAE_FLIPS", "25"))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A finished cache and a finished, evaluated run."""
    folder = tmp_path_factory.mktemp("made")
    words = [
        "cache.tokens=1500",
        "cache.validation_tokens=300",
        f"cache.dir={folder}/caches",
        "cache.shard_bytes=200000",
    ]
    training = ["train.tokens=4000", "train.batch=250", "sae.latents=32", "train.checkpoint_every=8", "tracker=jsonl"]
    result = CliRunner().invoke(app, ["train", *words, *training, f"runs_dir={folder}/runs"])
    assert result.exit_code == 0, result.output
    (cache,) = (path.parent for path in folder.glob("caches/*/manifest.json"))
    (run,) = (path.parent for path in folder.glob("runs/*/*/cfg.json"))
    assert CliRunner().invoke(app, ["eval", str(run), "eval.contexts=0"]).exit_code == 0
    return cache, run


def damages(file: Path, random: Random) -> Iterator[None]:
    """Damage a file FLIPS times, a tenth of them by cutting it; it is sound again afterwards."""
    sound = file.read_bytes()
    for number in range(FLIPS):
        data = bytearray(sound)
        spot = random.randrange(len(data))
        if number % 10 == 9:
            del data[spot:]
        else:
            data[spot] ^= 1 << random.randrange(8)
        file.write_bytes(bytes(data))
        yield
    file.write_bytes(sound)


def check(file: Path, read: Callable[[], Any]) -> int:
    """Return on how many damages `read` raised; on the others it gives what it gives of the sound file."""
    expected, refused = read(), 0
    for _ in damages(file, Random(file.name)):
        try:
            assert read() == expected
        except UserError as problem:
            refused += "\n" not in str(problem)
    assert read() == expected
    return refused


def everything(cache: Path) -> list[Any]:
    """Return all that training, evaluation and pages read of a cache."""
    reader = CacheReader(cache, 700_000, 0)
    batches = reader.batches(0, 100)
    rows = [next(batches) for _ in range(15)] + list(reader.validation(100))
    contexts = read_contexts(cache, "validation", 64)
    texts = [t for rows in contexts for t in (rows.x_ND, rows.context_N, rows.position_N)]
    tokens = read_tokens(cache, "train", range(3)), read_tokens(cache, "validation", range(2))
    return [[t.float().sum().item() for t in (*rows, *texts)], tokens, reader.scale, reader.mean_D.tolist()]


def weights(run: Path) -> list[Any]:
    sae = load_sae(run)
    tensors = (sae.W_enc_DF, sae.b_enc_F, sae.W_dec_FD, sae.b_dec_D, *sae.stored.values())
    return [sae.nonlinearity, sae.k, sae.metadata, *(t.double().sum().item() for t in tensors)]


def records(run: Path) -> list[Any]:
    opened = RunDirectory(run)
    status = opened.status
    return [opened.config, opened.stamp, opened.evaluation, opened.metrics(), status]


def test_caches(made: tuple[Path, Path]) -> None:
    cache, _ = made
    torch.set_num_threads(1)
    for file in sorted(cache.iterdir()):
        if file.is_file() and not file.name.startswith("."):
            refused = check(file, lambda: everything(cache))
            print(f"{file.name}: {refused} of {FLIPS} refused")
            assert refused > FLIPS / 2


def test_runs(made: tuple[Path, Path]) -> None:
    _, run = made
    readers: dict[str, Callable[[], Any]] = {
        "sae.safetensors": lambda: weights(run),
        "cfg.json": lambda: weights(run),
        **{
            name: lambda: records(run)
            for name in ("config.yaml", "stamp.json", "eval.json", "metrics.jsonl", "status.json")
        },
    }
    for name, read in readers.items():
        print(f"{name}: {check(run / name, read)} of {FLIPS} refused")


def test_checkpoints(made: tuple[Path, Path]) -> None:
    _, run = made
    logging.getLogger("sae_cli").setLevel(logging.ERROR)
    files = sorted((run / "checkpoint").glob("step-*"))
    last, before = (int(file.stem.removeprefix("step-")) for file in (files[-1], files[-2]))
    assert common_step([run / "checkpoint"]) == last
    for _ in damages(files[-1], Random(0)):
        assert common_step([run / "checkpoint"]) == before
