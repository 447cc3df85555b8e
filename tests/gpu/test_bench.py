"""`sae bench` and `sae train --profile` on CUDA."""

import pytest

from sae_cli.bench.run import bench
from sae_cli.training.execute import execute
from sae_cli.training.profile import TABLE
from tests.training.points import point


@pytest.mark.gpu
def test_bench_measures_the_gpu():
    result = bench(["device=cuda", "train.batch=512"], ["64x1024"], "1,3", l0=16, seconds=0.1)
    assert result["machine"]["bf16_flops"] > 1e12
    for row in result["rows"]:
        assert row["l0"] == pytest.approx(16, rel=0.25)
        # weights, gradients and two moments in fp32
        assert row["peak_bytes"] > 16 * row["members"] * 2 * 64 * 1024


@pytest.mark.gpu
def test_phases_wait_for_their_kernels(tmp_path):
    (outcome,) = execute([point(tmp_path, "device=cuda")], profile=True)
    assert "backward" in (outcome.folder / TABLE).read_text()
