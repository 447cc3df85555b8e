"""The step against an independent, plain implementation of the loss and Adam."""

import json

import pytest
import torch
from torch.nn.functional import normalize

from sae_cli.dictionary.artifact import load_sae
from sae_cli.dictionary.stack import SAEStack
from sae_cli.sources.registry import open_source
from sae_cli.training.dead_latents import resample
from sae_cli.training.execute import execute
from sae_cli.training.schedules import due_steps, learning_rate, per_member, ramp
from sae_cli.training.step import METRICS, Stepper
from tests.training.points import point


def make_stepper(folder, *words):
    config = point(folder, *words)
    stack = SAEStack.initialise([config], torch.zeros(12), "cpu", rows())
    return config, Stepper(stack, [config], "cpu")


def rows(seed=0, count=80):
    return torch.randn(count, 12, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("clip", [0.0, 0.05])
def test_one_step_equals_a_written_out_step(tmp_path, clip):
    config, stepper = make_stepper(
        tmp_path, "sae=relu", "sparsity.weight=0.7", "orthogonality=all_pairs", "orthogonality.weight=0.3",
        "train.warmup=0", "sparsity.warmup=0", f"train.clip={clip}",
    )  # fmt: skip
    W_enc, b_enc, W_dec, b_dec = (tensor[0].clone().requires_grad_() for tensor in stepper.stack.tensors().values())
    x = rows()
    f = torch.relu((x - b_dec) @ W_enc + b_enc)
    x_hat = f @ W_dec + b_dec
    c = normalize(W_dec, dim=1) @ normalize(W_dec, dim=1).T
    pairs = torch.triu_indices(32, 32, 1)
    omega = c[pairs[0], pairs[1]].clamp(min=0).square().mean()
    loss = (x - x_hat).square().sum(1).mean() + 0.7 * f.sum(1).mean() + 0.3 * 12 * omega
    loss.backward()
    W_dec.grad -= (W_dec.grad * W_dec).sum(1, keepdim=True) * W_dec.detach()
    norm = torch.stack([p.grad.norm() for p in (W_enc, b_enc, W_dec, b_dec)]).norm()
    if clip:
        torch.nn.utils.clip_grad_norm_([W_enc, b_enc, W_dec, b_dec], clip)
    torch.optim.Adam([W_enc, b_enc, W_dec, b_dec], lr=config.train.lr).step()

    stepper.step(0, x)
    measured = dict(zip(METRICS, stepper.take_metrics(1)[0].tolist(), strict=True))
    assert measured["loss"] == pytest.approx(loss.item(), rel=1e-5)
    assert measured["grad_norm"] == pytest.approx(norm.item(), rel=1e-4)
    assert measured["l0"] == pytest.approx((f > 0).sum(1).float().mean().item())
    live = stepper.stack
    torch.testing.assert_close(live.W_enc_KDF[0], W_enc.detach(), rtol=0, atol=2e-5)
    torch.testing.assert_close(live.W_dec_KFD[0], normalize(W_dec.detach(), dim=1), rtol=0, atol=2e-5)
    torch.testing.assert_close(live.b_enc_KF[0], b_enc.detach(), rtol=0, atol=2e-5)
    torch.testing.assert_close(live.b_dec_KD[0], b_dec.detach(), rtol=0, atol=2e-5)


def test_frozen_directions_stay_and_all_else_learns_as_before(tmp_path):
    words = ("sae=relu", "sparsity.weight=0.7", "sparsity.warmup=0", "train.warmup=0", "orthogonality.weight=0")
    _, free = make_stepper(tmp_path, *words)
    _, frozen = make_stepper(tmp_path, *words, "sae.freeze_decoder=true")
    start = {name: tensor.clone() for name, tensor in frozen.stack.state().items()}
    for stepper in (free, frozen):
        stepper.step(0, rows())
    for name, tensor in frozen.stack.state().items():
        same = name != "W_dec_KFD"
        assert torch.equal(tensor, free.stack.state()[name]) == same, name
    for step in range(1, 4):
        frozen.step(step, rows(step))
    assert torch.equal(frozen.stack.W_dec_KFD, start["W_dec_KFD"])
    assert not any(torch.equal(frozen.stack.state()[name], start[name]) for name in start.keys() - {"W_dec_KFD"})


def test_frozen_directions_come_out_of_training_as_they_began(tmp_path):
    config = point(tmp_path, "sae.freeze_decoder=true", "orthogonality.weight=0")
    (outcome,) = execute([config])
    start = SAEStack.initialise([config], torch.zeros(12), "cpu", rows()).W_dec_KFD[0]
    scale = open_source(config, "cpu").scale
    assert torch.equal(load_sae(outcome.folder).W_dec_FD, start / scale)


def test_every_third_step_carries_three_times_the_penalty(tmp_path):
    _, stepper = make_stepper(tmp_path, "orthogonality.weight=0.5", "orthogonality.every=3", "sparsity.weight=0")
    for step in range(3):
        stepper.step(step, rows(step))
        measured = dict(zip(METRICS, stepper.take_metrics(1)[0].tolist(), strict=True))
        penalty = measured["loss"] - measured["mse"]
        if step % 3:
            assert penalty == pytest.approx(0, abs=1e-4)
        else:
            assert penalty == pytest.approx(0.5 * 12 * 3 * measured["orthogonality"], rel=1e-3)


@pytest.mark.parametrize("target", [2.0, 6.0])
def test_lambda_is_moved_until_l0_is_at_its_target(tmp_path, target):
    words = ("sae=relu", "orthogonality=none", "train.tokens=48000", "train.lr=5e-3", "sparsity.target_rate=0.02")
    (outcome,) = execute([point(tmp_path, *words, f"sparsity.target_l0={target}")])
    last = [json.loads(line) for line in (outcome.folder / "metrics.jsonl").read_text().splitlines()][-5:]
    assert sum(line["l0"] for line in last) / 5 == pytest.approx(target, rel=0.1)
    assert last[-1]["lambda"] != pytest.approx(1.0, rel=0.1)


def test_lambda_moves_by_its_rate_towards_the_target_after_the_warm_up(tmp_path):
    _, stepper = make_stepper(
        tmp_path, "sae=relu", "sparsity.warmup=0.05", "sparsity.target_l0=1000", "sparsity.target_rate=0.25",
        "sae.latents=2000", "orthogonality=none",
    )  # fmt: skip
    scales = []
    for step in range(3):
        stepper.step(step, torch.zeros(80, 12))  # nothing fires: lambda must fall
        scales.append(stepper.lambda_scale_K.item())
    assert scales == [1.0, 0.75, 0.75**2]  # two of forty steps are warm-up


def test_a_target_holds_for_its_member_alone(tmp_path):
    configs = [point(tmp_path, "sae=relu", f"sparsity.target_l0={target}", "sparsity.warmup=0") for target in (0, 5)]
    stack = SAEStack.initialise(configs, torch.zeros(12), "cpu", rows())
    stepper = Stepper(stack, configs, "cpu")
    stepper.parts = [slice(0, 2)]
    stepper.step(0, rows())
    assert stepper.lambda_scale_K[0] == 1
    assert stepper.lambda_scale_K[1] == pytest.approx(1 + 1e-4)


def test_auxiliary_is_logged_where_there_is_such_a_loss(tmp_path):
    plain, gated = (execute([point(tmp_path, *words)])[0] for words in (("sae=relu",), ("sae=gated",)))
    lines = [json.loads((run.folder / "metrics.jsonl").read_text().splitlines()[-1]) for run in (plain, gated)]
    assert "auxiliary" not in lines[0]
    assert lines[1]["auxiliary"] > 0


def test_batchtopk_fires_k_latents_at_inference_too(tmp_path):
    words = ("sae=batchtopk", "sae.k=3", "sae.latents=24", "orthogonality=none", "train.tokens=64000", "train.lr=3e-3")
    config = point(tmp_path, *words)
    (outcome,) = execute([config])
    sae, source = load_sae(outcome.folder), open_source(config, "cpu")
    seen = torch.cat([batch for _, batch in zip(range(50), source.batches(700, 80), strict=False)])
    assert (sae.encode(seen) > 0).sum(1).float().mean().item() == pytest.approx(3, rel=0.08)


def test_resampling_changes_live_storage_and_adam_state(tmp_path):
    """Writing into a copy (`weight[dead][:n] = ...`) changes nothing: look at the live tensors themselves."""
    _, stepper = make_stepper(tmp_path, "train.dead_after=100")
    for step in range(3):
        stepper.step(step, rows(step))
    stepper.last_fired_KF[:] = 240
    stepper.last_fired_KF[0, :5] = 0
    stack, state = stepper.stack, stepper.adam.state(0)
    before = {name: tensor.clone() for name, tensor in stack.tensors().items()}
    pointers = [tensor.data_ptr() for tensor in stack.tensors().values()]
    assert state["W_enc_KDF"]["exp_avg"][0, :, :5].abs().sum() > 0
    assert stepper.dead(240).sum() == 5

    assert resample(stepper, rows(9, 300), 3, 240) == [5]
    assert [tensor.data_ptr() for tensor in stack.tensors().values()] == pointers
    assert not torch.allclose(stack.W_dec_KFD[0, :5], before["W_dec_KFD"][0, :5])
    assert torch.equal(stack.W_dec_KFD[0, 5:], before["W_dec_KFD"][0, 5:])
    assert torch.equal(stack.W_enc_KDF[0, :, 5:], before["W_enc_KDF"][0, :, 5:])
    live = before["W_enc_KDF"][0, :, 5:].norm(dim=0).mean()
    torch.testing.assert_close(stack.W_enc_KDF[0, :, :5].norm(dim=0), (0.2 * live).expand(5))
    assert torch.equal(stack.b_enc_KF[0, :5], torch.zeros(5))
    directions = normalize(rows(9, 300) - stack.b_dec_KD[0], dim=1)
    assert ((stack.W_dec_KFD[0, :5] @ directions.T).amax(1) > 0.9999).all()
    for moment in ("exp_avg", "exp_avg_sq"):
        assert state["W_dec_KFD"][moment][0, :5].abs().sum() == 0
        assert state["W_enc_KDF"][moment][0, :, :5].abs().sum() == 0
        assert state["b_enc_KF"][moment][0, :5].abs().sum() == 0
        assert state["W_dec_KFD"][moment][0, 5:].abs().sum() > 0
    encoder = stack.W_enc_KDF[0, :, 0].clone()
    stepper.step(3, rows(10))
    assert not torch.equal(stack.W_enc_KDF[0, :, 0], encoder)


def test_resampled_inputs_are_drawn_in_proportion_to_squared_error(tmp_path):
    """One input carries all the error, so every dead latent must point at it."""
    _, stepper = make_stepper(tmp_path, "train.dead_after=100", "sae=relu", "sae.bias_init=-5")
    pool = torch.zeros(50, 12)
    pool[17, 3] = 2.0
    stepper.stack.b_dec_KD.zero_()
    stepper.last_fired_KF[0, 8:] = 240
    resample(stepper, pool.repeat(8, 1), 1, 240)
    torch.testing.assert_close(stepper.stack.W_dec_KFD[0, :8, 3], torch.ones(8))


def test_learning_rate_rises_holds_and_falls(tmp_path):
    train = point(tmp_path, "train.tokens=8000", "train.decay=0.2", "train.final_lr=0.1").train
    rates = [learning_rate(step, 1.0, 0.1, train) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9:80] == pytest.approx([1.0] * 71)
    assert rates[90] == pytest.approx(0.1 + 0.9 * 0.5)
    assert rates[99] == pytest.approx(0.1 + 0.9 * 0.05)


def test_learning_rate_can_fall_early_and_rise_after_a_resampling(tmp_path):
    words = ("train.tokens=8000", "train.decay=0.2", "train.decay_end=0.9", "train.final_lr=0.1")
    train = point(tmp_path, *words, "train.resample_at=[0.5]", "train.resample_warmup=0.05").train
    rates = [learning_rate(step, 1.0, 0.0, train) for step in range(100)]
    assert rates[:50] == pytest.approx([1.0] * 50)
    assert rates[50:56] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0, 1.0])
    assert rates[80] == pytest.approx(0.1 + 0.9 * 0.5)
    assert rates[90:] == pytest.approx([0.1] * 10)


def test_rarely_firing_latents_are_resampled_by_their_frequency_in_the_last_window(tmp_path):
    words = ("train.resample_at=[0.25]", "train.dead_after=240", "train.dead_frequency=0.05")
    _, stepper = make_stepper(tmp_path, *words)
    fired = []
    for step in range(10):
        before = stepper.stack.part(slice(0, 1))
        fired.append((before.encode(rows(step))[0] > 0).sum(0))
        stepper.step(step, rows(step))
    counts = torch.stack(fired[7:]).sum(0)  # the three batches of 80 rows before step 10 of 40
    assert torch.equal(stepper.fired_KF[0], counts)
    assert torch.equal(stepper.resampled(800)[0], counts < 0.05 * 240)


def test_ramp_is_per_member():
    shares = per_member([0.0, 0.1, 0.5], "cpu")
    assert ramp(0, shares, 100).tolist() == pytest.approx([1, 0.1, 0.02])
    assert ramp(24, shares, 100).tolist() == pytest.approx([1, 1, 0.5])


def test_due_steps():
    assert due_steps([0.25, 0.5], 40) == {10, 20}


def test_directions_can_start_at_inputs_drawn_by_their_distance_from_the_decoder_bias(tmp_path):
    config = point(tmp_path, "sae.decoder_init=data", "sae.decoder_bias_init=zero", "sae.latents=2")
    inputs = torch.zeros(50, 12)
    inputs[3, 0], inputs[9, 5] = 4.0, 2.0
    stack = SAEStack.initialise([config], torch.ones(12), "cpu", inputs)
    assert sorted(stack.W_dec_KFD[0].argmax(1).tolist()) == [0, 5]
    torch.testing.assert_close(stack.W_dec_KFD[0].sum(1), torch.ones(2))
    torch.testing.assert_close(stack.W_enc_KDF[0].T, 0.1 * stack.W_dec_KFD[0])
