"""CUDA gives the CPU's results; run by `make gpu-check`."""

import pytest
import torch
from safetensors.torch import load_file

from sae_cli.device import on_device
from sae_cli.dictionary.artifact import load_sae
from sae_cli.training.checkpoint import checkpoint_file
from sae_cli.training.execute import execute
from sae_cli.training.step import Stepper
from tests.training.points import point

pytestmark = pytest.mark.gpu

MEMBERS = [(f"sparsity.weight={0.3 * (k + 1)}", f"orthogonality.weight={0.1 * k}", f"seed={k}") for k in range(4)]
WORDS = ("train.tokens=4000", "train.dead_after=400", "train.resample_at=[0.5]", "train.resample_rows=500")


def points(folder, *words):
    return [point(folder, *WORDS, *words, *member) for member in MEMBERS]


@pytest.mark.parametrize("path", ["dense", "sparse"])
@pytest.mark.parametrize("nonlinearity", ["relu", "prolu_relu", "prolu_ste"])
def test_a_stack_on_cuda_equals_the_cpu(tmp_path, nonlinearity, path):
    on_gpu = execute(points(tmp_path / "gpu", "device=cuda", f"sae={nonlinearity}", f"train.sparse={path}"))
    on_cpu = execute(points(tmp_path / "cpu", "device=cpu", f"sae={nonlinearity}"))
    for one, other in zip(on_gpu, on_cpu, strict=True):
        W_one, W_other = load_sae(one.folder).W_dec_FD, load_sae(other.folder).W_dec_FD
        assert (W_one - W_other).norm() <= 2e-3 * W_other.norm()


def test_batches_reach_the_device_unchanged_and_early():
    asked = []
    batches = (asked.append(number) or torch.full((512, 640), float(number)).bfloat16() for number in range(40))
    stream = on_device(batches, "cuda")
    for number, x_BD in enumerate(stream):
        assert x_BD.is_cuda
        assert bool((x_BD == number).all())
        if number == 20:
            assert len(asked) > 21
    assert asked == list(range(40))


def test_no_host_sync_between_log_lines(tmp_path):
    config = point(tmp_path, "device=cuda", "orthogonality.weight=0.2")
    from sae_cli.dictionary.stack import SAEStack

    stepper = Stepper(SAEStack.initialise([config], torch.zeros(12), "cuda", torch.randn(80, 12)), [config], "cuda")
    x = torch.randn(80, 12, device="cuda")
    stepper.step(0, x)
    torch.cuda.set_sync_debug_mode("error")
    try:
        stepper.step(1, x)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.isfinite(stepper.take_metrics(2)).all()


@pytest.mark.parametrize("path", ["dense", "sparse"])
def test_resume_is_bit_for_bit_on_cuda(tmp_path, monkeypatch, path):
    words = ("device=cuda", "train.checkpoint_every=20", "train.deterministic=true", f"train.sparse={path}")
    whole = execute(points(tmp_path / "whole", *words))
    step = Stepper.step

    def failing(self, index, x):
        if index == 31:
            raise RuntimeError("stopped on purpose")
        step(self, index, x)

    monkeypatch.setattr(Stepper, "step", failing)
    assert {outcome.state for outcome in execute(points(tmp_path / "parts", *words))} == {"failed"}
    monkeypatch.setattr(Stepper, "step", step)
    resumed = execute(points(tmp_path / "parts", *words))
    for one, other in zip(whole, resumed, strict=True):
        files = [load_file(checkpoint_file(outcome.folder / "checkpoint", 50)) for outcome in (one, other)]
        assert all(torch.equal(files[0][name], files[1][name]) for name in files[0])
