"""Several processes train what one trains: rows or latents shared out, checkpoints for any number of them."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sae_cli.dictionary.artifact import load_sae
from sae_cli.runs.directory import RunDirectory, find_runs
from sae_cli.training.checkpoint import saved_steps
from sae_cli.training.execute import execute
from tests.training.points import SMALL, point

TWENTY = ["train.tokens=1600", "train.dead_after=400"]
RESAMPLED = ["train.resample_at=[0.5]", "train.resample_rows=300", "sae.bias_init=-0.3"]
CASES = {
    "relu": ["sae=relu", *RESAMPLED, "orthogonality=nearest", "orthogonality.weight=0.3"],
    "prolu": ["sae=prolu_ste", "train.clip=0.5", "orthogonality.weight=0.3"],
    "topk": [
        "sae=topk",
        "sae.k=3",
        "sae.auxk_weight=0.1",
        "sae.auxk_latents=4",
        "train.dead_after=200",
        "orthogonality=neighbours",
        "orthogonality.weight=0.3",
    ],
    "batchtopk": ["sae=batchtopk", "sae.k=3", "orthogonality=gram", "orthogonality.weight=0.3"],
    "jumprelu": ["sae=jumprelu", "sae.preact_weight=0.01", "orthogonality=active_only", "orthogonality.weight=0.3"],
    "gated": ["sae=gated", "sae.prefixes=[0.3]", "sae.decoder_norm=free"],
    "target": ["sae=relu", "sparsity.target_l0=3", "sparsity.target_rate=0.01", "sae.decoder_init=data"],
}
"""Every nonlinearity with another way of being shared out, and every penalty that can be."""
ROWS_ONLY = {
    "grow": ["sae.grow=[12,20]", "orthogonality=rica", "orthogonality.weight=0.1"],
}


def members(folder, name, *words):
    """Return the words of two members of a case."""
    case = [*SMALL, *TWENTY, *(CASES | ROWS_ONLY)[name], *words, f"runs_dir={folder / name}"]
    return [[*case, f"seed={k}", f"train.lr={1e-3 * (k + 1)}"] for k in range(2)]


def launch(folder, size, jobs, expected=0):
    """Run jobs on so many ranks; return each rank's process, ended."""
    file = folder / "jobs.json"
    folder.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(jobs))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    places = {"WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.training.rank_worker", str(file)]
    ranks = [
        subprocess.Popen(
            command,
            env=os.environ | places | {"RANK": str(r)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for r in range(size)
    ]
    try:
        ended = [(*rank.communicate(timeout=120), rank.returncode) for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert all(code == expected for _, _, code in ended), ended
    return ended


def equal(one, other):
    """Hold two runs' artefacts and last metrics together."""
    first, second = load_sae(one), load_sae(other)
    for name in ("W_enc_DF", "b_enc_F", "W_dec_FD", "b_dec_D"):
        a, b = getattr(first, name), getattr(second, name)
        assert (a - b).norm() <= 1e-4 * a.norm() + 1e-6, name
    for name, values in first.stored.items():
        torch.testing.assert_close(values, second.stored[name], rtol=1e-4, atol=1e-5)
    last, its = (RunDirectory(folder).metrics()[-1] for folder in (one, other))
    timed = ("seconds", "tokens_per_second", "neighbour_recall", "neighbour_gap")
    assert {k: v for k, v in last.items() if k not in timed} == pytest.approx(
        {k: v for k, v in its.items() if k not in timed}, rel=1e-3, abs=1e-5
    )


def folders(path):
    return {run.config.seed: run.path for run in find_runs(path)}


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The cases trained by this process."""
    folder = tmp_path_factory.mktemp("alone")
    for name in (*CASES, *ROWS_ONLY):
        execute([point(folder, *words[len(SMALL) :]) for words in members(folder, name)])
    return folder


@pytest.fixture(scope="module", params=[("rows", 2), ("latents", 2), ("rows", 4), ("latents", 4)], ids=str)
def together(request, tmp_path_factory):
    """The same by several."""
    way, size = request.param
    folder = tmp_path_factory.mktemp("together")
    names = [*CASES, *(ROWS_ONLY if way == "rows" else ())] if size == 2 else ["relu", "topk", "batchtopk"]
    ended = launch(folder, size, [{"points": members(folder, name, f"train.parallel={way}")} for name in names])
    for _, errors, _ in ended[1:]:
        assert errors == ""
    return folder, names, way, size


@pytest.mark.slow
def test_ranks_end_where_one_process_does(alone, together):
    folder, names, _, size = together
    for name in names:
        theirs = folders(folder / name)
        for seed, run in folders(alone / name).items():
            assert RunDirectory(theirs[seed]).status["state"] == "done"
            assert RunDirectory(theirs[seed]).stamp["ranks"] == size
            assert run.name == theirs[seed].name
            equal(run, theirs[seed])
