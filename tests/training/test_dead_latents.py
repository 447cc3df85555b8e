"""What becomes of a dead latent under each nonlinearity."""

import pytest
import torch

from sae_cli.config.groups import choices
from sae_cli.dictionary.stack import SAEStack
from sae_cli.training.dead_latents import resample
from sae_cli.training.step import Stepper
from tests.training.points import point

DEAD = 6


def rows(seed, count=80):
    return torch.randn(count, 12, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("choice", choices("sae"))
def test_resampled_latents_fire_again(tmp_path, choice):
    words = (f"sae={choice}", "sae.k=5", "sae.encoder_scale=1", "train.dead_after=100")
    config = point(tmp_path, "orthogonality=none", *words)
    stack = SAEStack.initialise([config], torch.zeros(12), "cpu", torch.empty(0))
    stepper = Stepper(stack, [config], "cpu")
    stack.W_enc_KDF[..., :DEAD] = 0
    for vectors in (stack.b_enc_KF, *stack.learned_KF.values()):
        vectors[:, :DEAD] = 3.0 if choice == "jumprelu" and vectors is not stack.b_enc_KF else -3.0
    for step in range(3):
        stepper.step(step, rows(step))
    assert stepper.dead(240)[0].nonzero().flatten().tolist() == list(range(DEAD))
    assert resample(stepper, rows(9, 300), 3, 240) == [DEAD]
    started = stack.nonlinearity.start(config.sae)
    for name, vectors in stack.learned_KF.items():
        assert (vectors[0, :DEAD] == started[name]).all()
    assert (stack.encode(rows(9, 300))[0, :, :DEAD] != 0).any(0).all()


def test_a_resampled_gate_opens_from_zero_bias(tmp_path):
    config = point(tmp_path, "sae=gated", "sae.bias_init=-1", "train.dead_after=1")
    stepper = Stepper(SAEStack.initialise([config], torch.zeros(12), "cpu", torch.empty(0)), [config], "cpu")
    assert resample(stepper, rows(1), 1, 80) == [32]
    assert not stepper.stack.b_enc_KF.any()
    assert not stepper.stack.learned_KF["b_mag"].any()
