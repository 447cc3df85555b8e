"""Latents trained in stages: what each stage is, that the result is one SAE, and exact resume."""

import pytest
import torch
from safetensors.torch import load_file
from torch.nn.functional import normalize

from sae_cli.dictionary.artifact import load_sae
from sae_cli.dictionary.stack import SAEStack
from sae_cli.losses.orthogonality import ORTHOGONALITY
from sae_cli.runs.directory import RunDirectory
from sae_cli.sources.registry import open_source
from sae_cli.training.checkpoint import checkpoint_file
from sae_cli.training.dead_latents import resample
from sae_cli.training.execute import execute, plan_point
from sae_cli.training.stages import Stage, grow, stage_config
from sae_cli.training.step import Stepper
from tests.training.points import point

GROW = ("sae.grow=[12,20]", "orthogonality=nearest", "orthogonality.weight=0.1", "train.lr=1e-2")
FROM_DATA = ("sae.decoder_init=data", "train.resample_rows=300", "train.resample_at=[0.5]", "train.dead_after=200")
FORMULAS = {
    "relu": lambda m, b, threshold: torch.relu(m + b),
    "prolu_ste": lambda m, b, threshold: m * (m > 0) * (m + b > 0),
    "batchtopk": lambda m, b, threshold: torch.relu(m + b) * (m + b >= threshold),
}


def final_state(outcome, steps=40):
    return load_file(checkpoint_file(outcome.folder / "checkpoint", steps))


def artefact(outcome):
    return (outcome.folder / "sae.safetensors").read_bytes()


def lines(outcome):
    timed = ("seconds", "tokens_per_second", "data_wait")
    return [
        {key: value for key, value in line.items() if key not in timed}
        for line in RunDirectory(outcome.folder).metrics()
    ]


@pytest.mark.parametrize("nonlinearity", FORMULAS)
def test_the_artefact_is_the_sum_of_the_stages(tmp_path, nonlinearity):
    sparsity = ("sparsity=none",) if nonlinearity == "batchtopk" else ()
    words = (f"sae.nonlinearity={nonlinearity}", "sae.k=6", "sae.bias_init=-0.1", "sae.grow=[8,8,16]", *sparsity)
    config = point(tmp_path, *GROW, *words)
    (outcome,) = execute([config])
    source, state, sae = open_source(config, "cpu"), final_state(outcome), load_sae(outcome.folder)
    x_raw = next(source.validation(200))
    x = x_raw * source.scale
    acts, x_hat = [], torch.zeros_like(x)
    for prefix in ("earlier.", ""):
        W_enc, b_enc, W_dec, b_dec = (
            state[f"{prefix}{name}"] for name in ("W_enc_KDF", "b_enc_KF", "W_dec_KFD", "b_dec_KD")
        )
        threshold = state.get(f"{prefix}threshold_KF")
        f = FORMULAS[nonlinearity]((x - state["centre"]) @ W_enc, b_enc, threshold)
        acts.append(f)
        x_hat += f @ W_dec + b_dec
    torch.testing.assert_close(sae.encode(x_raw), torch.cat(acts, 1), rtol=0, atol=1e-5)
    torch.testing.assert_close(sae.decode(sae.encode(x_raw)) * source.scale, x_hat, rtol=0, atol=1e-5)
    assert all(0 < (f > 0).float().mean() < 1 for f in acts)
    assert state["b_dec_KD"].norm() > 1e-3 if nonlinearity != "prolu_ste" else not state["b_dec_KD"].any()


@pytest.mark.parametrize("nonlinearity", ["relu", "prolu_ste"])
def test_the_first_stage_is_a_run_of_its_size_and_stays_as_it_was(tmp_path, nonlinearity):
    words = (*GROW, *FROM_DATA, f"sae={nonlinearity}")
    (grown,) = execute([point(tmp_path, *words)])
    (alone,) = execute([point(tmp_path, *words, "sae.grow=[]", "sae.latents=12", "train.tokens=1600")])
    state, first = final_state(grown), final_state(alone, 20)
    for name in ("W_enc_KDF", "b_enc_KF", "W_dec_KFD", "b_dec_KD"):
        assert torch.equal(state[f"earlier.{name}"], first[name]), name
    scale = open_source(point(tmp_path), "cpu").scale
    assert torch.equal(load_sae(grown.folder).W_dec_FD[:12] * scale, load_sae(alone.folder).W_dec_FD * scale)


class Killed(Exception):
    pass


@pytest.mark.parametrize(
    ("members", "every", "kill_at"), [(1, 20, 20), (1, 14, 30), (2, 7, 10), (2, 20, 20), (2, 20, 25), (2, 14, 30)]
)
def test_resume_is_exact_in_any_stage_and_at_its_end(tmp_path, monkeypatch, members, every, kill_at):
    words = (*GROW, *FROM_DATA, "sae.bias_init=-0.3", f"train.checkpoint_every={every}")

    def points(folder):
        return [point(tmp_path / folder, *words, f"sparsity.weight={k + 1}", f"seed={k}") for k in range(members)]

    whole = execute(points("whole"))
    done = 0

    def killing(self, step, x_BD, plain=Stepper.step):
        nonlocal done
        if done == kill_at:
            raise Killed
        done += 1
        plain(self, step, x_BD)

    with monkeypatch.context() as patch:
        patch.setattr(Stepper, "step", killing)
        assert [outcome.state for outcome in execute(points("parts"))] == ["failed"] * members
    resumed = execute(points("parts"))
    for one, other in zip(whole, resumed, strict=True):
        assert other.state == "done"
        assert artefact(one) == artefact(other)
        assert lines(one) == lines(other)
        state, expected = final_state(other), final_state(one)
        assert all(torch.equal(state[name], expected[name]) for name in expected)


def test_a_member_alone_equals_the_member_in_a_stack(tmp_path):
    words = (*GROW, *FROM_DATA)
    members = [(f"sparsity.weight={k + 1}", f"seed={k}", f"orthogonality.weight={k}") for k in range(3)]
    together = execute([point(tmp_path / "stack", *words, *member) for member in members])
    for k in (0, 2):
        (alone,) = execute([point(tmp_path / "alone", *words, *members[k])])
        torch.testing.assert_close(load_sae(alone.folder).W_dec_FD, load_sae(together[k].folder).W_dec_FD)


def test_a_later_stage_lowers_the_error(tmp_path):
    (outcome,) = execute([point(tmp_path, *GROW, "train.tokens=32000", "sparsity.weight=0.2")])
    fvu = {line["step"]: line["fvu"] for line in lines(outcome)}
    assert fvu[400] < 0.7 * fvu[200]


def test_metrics_are_of_the_whole_dictionary(tmp_path):
    """With a learning rate of nearly 0 the artefact is what the last step measured."""
    words = ("sae=relu", "train.lr=1e-9", "train.log_every=1", "train.dead_after=1", "sae.bias_init=-0.25")
    config = point(tmp_path, *GROW, *words)
    (outcome,) = execute([config])
    source, sae, last = open_source(config, "cpu"), load_sae(outcome.folder), lines(outcome)[-1]
    x_BD = next(source.batches(39, 80))
    acts_BF = sae.encode(x_BD)
    error = (x_BD - sae.decode(acts_BF)).square().sum(1).mean().item()
    silent = (acts_BF > 0).sum(0) == 0
    assert last["l0"] == pytest.approx((acts_BF > 0).sum(1).float().mean().item(), rel=1e-5)
    assert last["fvu"] == pytest.approx(error / source.variance, rel=1e-4)
    assert last["dead"] == pytest.approx(silent.float().mean().item())
    assert 0 < silent[:12].sum() < silent.sum()


def test_a_stage_has_its_share_of_steps_k_and_target(tmp_path):
    words = ("sae.k=10", "sae.grow=[2,10,20]", "train.tokens=8000", "seed=3")
    config = point(tmp_path, *words, "sparsity.target_l0=16", "train.resample_at=[0.5]")
    stages = [Stage.of([config], index) for index in range(3)]
    assert [(stage.start, stage.end) for stage in stages] == [(0, 33), (33, 66), (66, 100)]
    assert [stage.resampling for stage in stages] == [{16}, {49}, {83}]
    shares = [stage.configs[0] for stage in stages]
    assert [share.sae.latents for share in shares] == [2, 10, 20]
    assert [share.sae.k for share in shares] == [1, 3, 6]
    assert [share.sparsity.target_l0 for share in shares] == [1, 5, 10]
    assert [share.train.tokens for share in shares] == [33 * 80, 33 * 80, 34 * 80]
    assert (shares[0].seed, shares[0].train.data_seed) == (config.seed, config.train.data_seed)
    assert len({share.seed for share in shares}) == len({share.train.data_seed for share in shares}) == 3
    plain = point(tmp_path)
    assert stage_config(plain, 0, 40) is plain


def grown_stepper(folder, *words):
    """Return the stepper of a second stage whose first reconstructs the first coordinate, where it is positive."""
    config = point(folder, "sae=relu", "sae.grow=[1,31]", *words)
    first, second = (Stage.of([config], index) for index in range(2))
    stack = SAEStack.initialise(first.configs, torch.zeros(12), "cpu", torch.eye(12))
    stack.W_dec_KFD[:] = torch.eye(12)[0]
    stack.W_enc_KDF[:] = torch.eye(12)[:, :1]
    stack.b_enc_KF.zero_()
    return config, second, Stepper(stack, first.configs, "cpu")


def nearly_explained():
    """Return rows along the first coordinate; every tenth has a part along the fourth."""
    rows = 3 * torch.eye(12)[0].repeat(400, 1)
    rows[::10, 3] = 2.0
    return rows


def test_directions_from_data_are_drawn_from_what_is_left(tmp_path):
    _, stage, stepper = grown_stepper(tmp_path, "sae.decoder_init=data")
    after = grow(stepper, stage, nearly_explained)
    torch.testing.assert_close(after.stack.W_dec_KFD[0], torch.eye(12)[3].expand(31, 12))
    assert not after.stack.b_dec_KD.any()


def test_resampled_directions_are_drawn_from_what_is_left(tmp_path):
    _, stage, stepper = grown_stepper(tmp_path, "train.dead_after=100", "sae.bias_init=-5")
    after = grow(stepper, stage, nearly_explained)
    after.last_fired_KF[0, 8:] = 240
    assert resample(after, nearly_explained(), 30, 240) == [8]
    torch.testing.assert_close(after.stack.W_dec_KFD[0, :8], torch.eye(12)[3].expand(8, 12))


def test_a_member_that_went_non_finite_stays_frozen_in_later_stages(tmp_path):
    words = (*GROW, *FROM_DATA, "train.warmup=0")
    good, bad = execute([point(tmp_path, *words), point(tmp_path, *words, "train.lr=1e30")])
    assert (good.state, bad.state) == ("done", "failed")
    (alone,) = execute([point(tmp_path / "alone", *words)])
    assert artefact(alone) == artefact(good)


def test_penalties_see_the_frozen_directions(tmp_path, monkeypatch):
    seen = []

    def recording(directions, settings):
        seen.append(None if directions.frozen_GD is None else directions.frozen_GD.clone())
        return directions.W_FD.sum() * 0

    monkeypatch.setitem(ORTHOGONALITY, "nearest", recording)
    (outcome,) = execute([point(tmp_path, *GROW)])
    frozen_GD = final_state(outcome)["earlier.W_dec_KFD"]
    assert seen[:20] == [None] * 20
    assert all(torch.equal(directions, frozen_GD) for directions in seen[20:])
    torch.testing.assert_close(normalize(load_sae(outcome.folder).W_dec_FD[:12], dim=1), frozen_GD)


def test_memory_is_that_of_the_largest_stage(tmp_path):
    memory = {
        words: plan_point(point(tmp_path, *words)).memory_bytes
        for words in [(), ("sae.grow=[32]",), ("sae.grow=[16,16]",)]
    }
    assert memory[()] == memory[("sae.grow=[32]",)] == 16 * (2 * 12 * 32 + 32 + 12) + 24 * 80 * 32
    assert memory[("sae.grow=[16,16]",)] < memory[()]
