"""A member's result depends on its own point, not on its company."""

import pytest
import torch

from sae_cli.config.groups import choices
from sae_cli.dictionary.artifact import load_sae
from sae_cli.runs.directory import RunDirectory
from sae_cli.training.execute import execute
from sae_cli.training.step import Stepper
from tests.training.points import point

EIGHT = [
    (f"sparsity.weight={0.2 * (k + 1):.1f}", f"orthogonality.weight={0.1 * k:.1f}", f"seed={k % 3}", f"train.lr={lr}")
    for k, lr in enumerate([1e-3, 2e-3, 3e-4, 1e-3, 5e-3, 1e-3, 1e-2, 1e-4])
]
FIFTY = ("train.tokens=4000", "train.dead_after=400", "train.resample_at=[0.5]", "train.resample_rows=500")


@pytest.mark.parametrize("choice", ["relu", "prolu_relu", "prolu_ste", "relu train.sparse=sparse"])
def test_a_member_alone_equals_the_member_in_a_stack_of_eight(tmp_path, choice):
    words = (*FIFTY, *f"sae={choice}".split())
    together = execute([point(tmp_path / "stack", *words, *member) for member in EIGHT])
    for k in (0, 3, 6):
        (alone,) = execute([point(tmp_path / "alone", *words, *EIGHT[k])])
        equal(load_sae(alone.folder), load_sae(together[k].folder))


KINDS = [f"sae={choice}" for choice in choices("sae") if choice not in ("relu", "prolu_relu", "prolu_ste")]
COUNTED = ("topk", "batchtopk", "matryoshka")
TWENTY = (*FIFTY, "train.tokens=1600", "sae.auxk_weight=0.1", "sae.auxk_latents=4")


def three(choice):
    """Return three members: of different k where k matters, else of different lambda."""
    keys = ("sae.k", (2, 5, 3)) if choice.removeprefix("sae=") in COUNTED else ("sparsity.weight", (0.2, 0.5, 1.0))
    return [(f"{keys[0]}={value}", f"seed={k}", f"train.lr={1e-3 * (k + 1)}") for k, value in enumerate(keys[1])]


def equal(one, other):
    for name in ("W_enc_DF", "b_enc_F", "W_dec_FD", "b_dec_D"):
        difference = (getattr(one, name) - getattr(other, name)).norm()
        assert difference <= 1e-4 * getattr(one, name).norm()
    assert one.k == other.k
    for name, values in one.stored.items():
        torch.testing.assert_close(values, other.stored[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("choice", KINDS)
def test_every_choice_trains_in_a_stack_as_alone_and_in_batched_products(tmp_path, choice, monkeypatch):
    words = (*TWENTY, choice)
    looped = execute([point(tmp_path / "stack", *words, *member) for member in three(choice)])
    (alone,) = execute([point(tmp_path / "alone", *words, *three(choice)[1])])
    equal(load_sae(alone.folder), load_sae(looped[1].folder))
    batch_products(monkeypatch)
    batched = execute([point(tmp_path / "batched", *words, *member) for member in three(choice)])
    for one, other in zip(looped, batched, strict=True):
        assert one.state == "done"
        torch.testing.assert_close(load_sae(one.folder).W_dec_FD, load_sae(other.folder).W_dec_FD, rtol=0, atol=1e-3)


@pytest.mark.parametrize("kind", ["active_only", "unique_nearest", "cells", "neighbours", "rica", "decomposable"])
def test_a_penalty_depends_on_no_other_member(tmp_path, kind):
    words = ("train.tokens=1600", f"orthogonality={kind}", "orthogonality.refresh=7", "orthogonality.meta_k=1")
    together = execute([point(tmp_path / "stack", *words, *member) for member in EIGHT[1:4]])
    (alone,) = execute([point(tmp_path / "alone", *words, *EIGHT[2])])
    one, other = load_sae(alone.folder), load_sae(together[1].folder)
    torch.testing.assert_close(one.W_dec_FD, other.W_dec_FD, rtol=0, atol=1e-5)


def batch_products(monkeypatch):
    """Let the CPU train all members in one batched product, as accelerators do."""
    begin = Stepper.__init__

    def batched(self, stack, configs, device):
        begin(self, stack, configs, device)
        self.parts = [slice(0, stack.members)]

    monkeypatch.setattr(Stepper, "__init__", batched)


def test_batched_products_give_the_loop_s_result(tmp_path, monkeypatch):
    loop = execute([point(tmp_path / "loop", *FIFTY, *member) for member in EIGHT])
    batch_products(monkeypatch)
    together = execute([point(tmp_path / "batched", *FIFTY, *member) for member in EIGHT])
    for one, other in zip(loop, together, strict=True):
        torch.testing.assert_close(load_sae(one.folder).W_dec_FD, load_sae(other.folder).W_dec_FD, rtol=0, atol=1e-4)


def test_a_non_finite_member_is_frozen_and_named_and_the_others_go_on(tmp_path):
    healthy = ("sparsity.weight=0.5", "seed=1")
    words = ("train.tokens=4000", "train.warmup=0")
    both = [point(tmp_path / "two", *words, *healthy), point(tmp_path / "two", *words, "train.lr=1e30")]
    good, bad = execute(both)
    assert good.state == "done"
    assert bad.state == "failed"
    assert "non-finite" in bad.error
    status = RunDirectory(bad.folder).status
    assert status["state"] == "failed"
    assert "train.lr" in status["error"]
    (alone,) = execute([point(tmp_path / "one", *words, *healthy)])
    assert (alone.folder / "sae.safetensors").read_bytes() == (good.folder / "sae.safetensors").read_bytes()


def test_directions_stay_unit_and_the_scale_is_folded(tmp_path):
    (outcome,) = execute([point(tmp_path)])
    norms = load_sae(outcome.folder).W_dec_FD.norm(dim=1)
    torch.testing.assert_close(norms, norms[0].expand(len(norms)))


def test_points_of_different_stacks_are_refused(tmp_path):
    with pytest.raises(ValueError, match="stack key"):
        execute([point(tmp_path), point(tmp_path, "sae.latents=16")])


def test_evaluation_reaches_the_tracker_s_summary(tmp_path, monkeypatch):
    from sae_cli.runs import tracking
    from sae_cli.training import execute as module

    seen = {}

    class Recorder(tracking.Tracker):
        def summary(self, values):
            seen.update(values)

    monkeypatch.setattr(module, "open_tracker", lambda *_: Recorder())
    (outcome,) = execute([point(tmp_path)], evaluate=True)
    evaluation = RunDirectory(outcome.folder).evaluation
    assert seen["eval/reconstruction/fvu"] == evaluation["reconstruction"]["fvu"]
    assert seen["eval/ground_truth/mcc"] == evaluation["ground_truth"]["mcc"]
    assert "final/loss" in seen


@pytest.mark.parametrize("nonlinearity", ["relu", "prolu_relu", "prolu_ste"])
def test_bf16_compute_ends_where_fp32_does(tmp_path, nonlinearity):
    """Master weights are fp32, so low-precision products change the result by little."""
    words = ("train.tokens=24000", f"sae={nonlinearity}", "orthogonality.weight=0.2", "sparsity.weight=0.5")
    ends = {}
    for precision in ("fp32", "bf16"):
        (outcome,) = execute([point(tmp_path, *words, f"train.precision={precision}")])
        assert load_sae(outcome.folder).W_dec_FD.dtype == torch.float32
        ends[precision] = RunDirectory(outcome.folder).metrics()[-1]
    for name in ("loss", "fvu"):
        assert ends["bf16"][name] == pytest.approx(ends["fp32"][name], rel=0.01)
