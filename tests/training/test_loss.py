"""Terms of the loss against written-out formulas."""

import pytest
import torch

from sae_cli.dictionary.nonlinearities import NONLINEARITIES
from sae_cli.dictionary.stack import SAEStack
from sae_cli.training.loss import Weights, has_auxiliary, losses
from sae_cli.training.terms import firing_counts, prefix_ends
from sae_cli.training.trainer import METRICS
from tests.training.points import point

B, D, F = 30, 12, 32


def make(folder, *words, members=1):
    """Return a configuration and a stack of random parameters in fp64."""
    config = point(folder, "orthogonality=none", *words)
    stack = SAEStack.initialise([config] * members, torch.zeros(D), "cpu", torch.empty(0)).part(slice(None))
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, tensor in stack.tensors().items():
            tensor.copy_(torch.randn(tensor.shape, generator=generator) * (0.3 if name == "W_enc_KDF" else 1))
    return config, stack


def measure(config, stack, lam=0.0, dead=None, x=None):
    members = stack.members
    dead_KF = torch.zeros(members, F, dtype=torch.bool) if dead is None else dead
    weights = Weights(torch.full((members,), lam), torch.zeros(members), [False] * members)
    return losses(stack, config, rows() if x is None else x, dead_KF, weights, 0, [{}] * members)


def rows():
    return torch.randn(B, D, generator=torch.Generator().manual_seed(6))


def error(x, x_hat):
    return (x - x_hat).square().sum(-1).mean()


def some_dead(*latents):
    dead_KF = torch.zeros(1, F, dtype=torch.bool)
    dead_KF[0, list(latents)] = True
    return dead_KF


def test_prefixes_end_where_their_shares_do():
    assert prefix_ends(1024, [0.0625, 0.25]) == [64, 256, 1024]
    assert prefix_ends(3, [0.1, 0.2, 0.5]) == [1, 2, 3]
    assert prefix_ends(8, []) == [8]


def test_prefix_losses_are_summed(tmp_path):
    config, stack = make(tmp_path, "sae=relu", "sae.prefixes=[0.25,0.5]")
    found = measure(config, stack, lam=0.7)
    x, f = rows(), stack.encode(rows())[0]
    expected = sum(
        error(x, f[:, :end] @ stack.W_dec_KFD[0, :end] + stack.b_dec_KD[0]) + 0.7 * f[:, :end].sum(1).mean()
        for end in (8, 16, 32)
    )
    torch.testing.assert_close(found.loss_K[0], expected)
    torch.testing.assert_close(found.mse_K[0], error(x, stack.decode(f)[0]))


def test_rescaling_directions_and_encoder_leaves_the_free_norm_loss_alone(tmp_path):
    """With decoder_norm=free a latent counts as f ||W_dec||, so its scale cannot buy a smaller penalty."""
    generator = torch.Generator().manual_seed(7)
    scale_F = torch.rand(F, generator=generator) * 3 + 0.2
    for kind in ("l1", "sqrt_l1", "tanh"):
        words = ("sae=relu", f"sparsity={kind}", "sae.decoder_norm=free", "sae.preact_weight=0.01")
        config, stack = make(tmp_path, *words)
        dead = some_dead(1, 5, 9)
        before = measure(config, stack, lam=0.7, dead=dead)
        with torch.no_grad():
            stack.W_dec_KFD *= scale_F.unsqueeze(1)
            stack.W_enc_KDF /= scale_F
            stack.b_enc_KF /= scale_F
        after = measure(config, stack, lam=0.7, dead=dead)
        torch.testing.assert_close(after.loss_K, before.loss_K, rtol=1e-4, atol=0)
        assert before.auxiliary_K > 0
    unit, stack = make(tmp_path, "sae=relu", "sparsity=l1")
    f, norm_F = stack.encode(rows())[0], stack.W_dec_KFD[0].norm(dim=1)
    torch.testing.assert_close(measure(unit, stack).sparsity_K[0], f.sum(1).mean())
    free, stack = make(tmp_path, "sae=relu", "sparsity=l1", "sae.decoder_norm=free")
    torch.testing.assert_close(measure(free, stack).sparsity_K[0], (f * norm_F).sum(1).mean())


def test_gated_reconstructs_from_its_gate_through_the_detached_decoder(tmp_path):
    config, stack = make(tmp_path, "sae=gated")
    found = measure(config, stack, lam=0.7)
    x = rows()
    gate = torch.relu((x - stack.b_dec_KD[0]) @ stack.W_enc_KDF[0] + stack.b_enc_KF[0])
    torch.testing.assert_close(found.sparsity_K[0], gate.sum(1).mean())
    torch.testing.assert_close(found.auxiliary_K[0], error(x, gate @ stack.W_dec_KFD[0] + stack.b_dec_KD[0]))
    torch.testing.assert_close(found.loss_K[0], (found.mse_K + 0.7 * found.sparsity_K + found.auxiliary_K)[0])
    gradient = torch.autograd.grad(
        found.auxiliary_K.sum(), [stack.W_dec_KFD, stack.b_enc_KF], allow_unused=True, retain_graph=True
    )
    assert gradient[0] is None
    assert gradient[1].any()


@pytest.mark.parametrize("dead", [(0, 3, 8, 20, 31), range(F)], ids=["some", "all"])
@pytest.mark.parametrize("latents", [2, 512])
def test_auxk_reconstructs_the_residual_from_the_largest_dead_latents(tmp_path, latents, dead):
    words = ("sae=topk", "sae.k=3", "sae.auxk_weight=0.25", f"sae.auxk_latents={latents}")
    config, stack = make(tmp_path, *words)
    dead = some_dead(*dead)
    found = measure(config, stack, dead=dead)
    x = rows()
    z = torch.relu((x - stack.b_dec_KD[0]) @ stack.W_enc_KDF[0] + stack.b_enc_KF[0]) * dead
    chosen = min(latents, int(dead.sum()))
    threshold = z.sort(dim=1, descending=True).values[:, chosen - 1 : chosen]
    e_hat = torch.where(z >= threshold, z, 0) @ stack.W_dec_KFD[0]
    e = x - stack.decode(stack.encode(x))[0]
    torch.testing.assert_close(found.auxiliary_K[0], 0.25 * error(e, e_hat))
    only = torch.autograd.grad(found.auxiliary_K.sum(), stack.W_enc_KDF)[0][0]
    assert only[:, dead[0]].any()
    assert not only[:, ~dead[0]].any()


def test_auxk_is_0_without_dead_latents(tmp_path):
    config, stack = make(tmp_path, "sae=topk", "sae.k=3", "sae.auxk_weight=0.25")
    assert measure(config, stack).auxiliary_K.item() == 0


def test_the_pre_activation_loss_sums_the_distances_of_dead_latents(tmp_path):
    config, stack = make(tmp_path, "sae=jumprelu", "sae.preact_weight=0.01")
    found = measure(config, stack, dead=some_dead(2, 7))
    z = (rows() - stack.b_dec_KD[0]) @ stack.W_enc_KDF[0] + stack.b_enc_KF[0]
    short = torch.relu(stack.learned_KF["log_threshold"][0].exp() - z)
    torch.testing.assert_close(found.auxiliary_K[0], 0.01 * short[:, [2, 7]].sum(1).mean())


def test_the_l0_penalty_moves_jumprelu_s_thresholds_alone(tmp_path):
    config, stack = make(tmp_path, "sae=jumprelu", "sparsity.bandwidth=0.5")
    found = measure(config, stack)
    z = (rows() - stack.b_dec_KD[0]) @ stack.W_enc_KDF[0] + stack.b_enc_KF[0]
    theta = stack.learned_KF["log_threshold"][0].exp()
    torch.testing.assert_close(found.sparsity_K[0], (z > theta).float().sum(1).mean())
    wanted = [stack.learned_KF["log_threshold"], stack.b_enc_KF, stack.W_enc_KDF]
    moved, bias, encoder = torch.autograd.grad(found.sparsity_K.sum(), wanted, allow_unused=True)
    expected = -theta / 0.5 * ((z - theta).abs() < 0.25).float().mean(0)
    torch.testing.assert_close(moved[0], expected.detach())
    assert bias is None
    assert encoder is None


def test_l0_gives_relu_s_biases_a_gradient(tmp_path):
    config, stack = make(tmp_path, "sae=relu", "sparsity=l0", "sparsity.bandwidth=0.1")
    (bias,) = torch.autograd.grad(measure(config, stack).sparsity_K.sum(), [stack.b_enc_KF])
    z = (rows() - stack.b_dec_KD[0]) @ stack.W_enc_KDF[0] + stack.b_enc_KF[0]
    torch.testing.assert_close(bias[0], ((z.abs() < 0.05).float().mean(0) / 0.1).detach())


def test_latents_below_0_count_as_firing_and_by_their_size(tmp_path):
    config, stack = make(tmp_path, "sae=tlin", "sae.theta=0.5")
    found = measure(config, stack)
    m = ((rows() - stack.b_dec_KD[0]) @ stack.W_enc_KDF[0]).detach()
    fires = m.abs() > 0.5
    assert torch.equal(found.counts_KF[0], fires.sum(0).float())
    torch.testing.assert_close(found.sparsity_K[0], (m.abs() * fires).sum(1).mean())
    assert torch.equal(firing_counts(-torch.eye(3).unsqueeze(0), negative=True), torch.ones(1, 3))


@pytest.mark.parametrize("name", NONLINEARITIES)
def test_an_auxiliary_loss_is_announced_where_there_is_one(tmp_path, name):
    config, stack = make(tmp_path, f"sae={name}", "sae.auxk_weight=0")
    assert "auxiliary" in METRICS
    assert has_auxiliary(config.sae) == bool(measure(config, stack).auxiliary_K.any())
    config.sae.auxk_weight = 0.1
    assert has_auxiliary(config.sae)
