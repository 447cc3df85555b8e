"""Sparsity penalties against their formulas."""

import torch

from sae_cli.config.schema import SparsityConfig
from sae_cli.losses.sparsity import SPARSITY, row_sums

ACTS = torch.tensor([[[0.0, 4.0, 9.0], [1.0, 0.0, 0.0]]])


def penalty(kind, acts):
    """Return mean_B sum_F of the elementwise penalty (K,)."""
    return row_sums(SPARSITY[kind](acts, lambda: acts, SparsityConfig(kind=kind))).sum(1) / acts.shape[1]


def test_l1_sums_over_latents_and_averages_over_rows():
    assert penalty("l1", ACTS).tolist() == [7.0]


def test_sqrt_l1_adds_epsilon_under_the_root():
    expected = (ACTS + 1e-6).sqrt().sum((1, 2)) / 2
    torch.testing.assert_close(penalty("sqrt_l1", ACTS), expected)


def test_sqrt_l1_gives_silent_latents_no_gradient_through_relu():
    m = torch.tensor([[[-1.0, 4.0]]], requires_grad=True)
    penalty("sqrt_l1", torch.relu(m)).sum().backward()
    torch.testing.assert_close(m.grad, torch.tensor([[[0.0, 0.25]]]))


def test_lp_and_tanh_equal_their_formulas():
    settings = SparsityConfig(kind="", exponent=0.3, scale=0.5, epsilon=1e-3)
    values = {kind: SPARSITY[kind](ACTS, lambda: ACTS, settings) for kind in ("lp", "tanh", "none")}
    torch.testing.assert_close(values["lp"], (ACTS + 1e-3) ** 0.3)
    power = (2 * 0.5 * ACTS).exp()
    torch.testing.assert_close(values["tanh"], (power - 1) / (power + 1))
    assert not values["none"].any()


def test_l0_counts_open_gates_and_moves_a_threshold_by_its_kernel():
    """d/dtheta sum 1[z > theta] = -(1/eps) sum over rows of 1[|z - theta| < eps/2] (arXiv 2407.14435)."""
    z = torch.tensor([[[0.05, 3.0], [0.3, -1.0], [0.56, 0.5], [0.9, 0.7]]], requires_grad=True)
    theta = torch.tensor([[[0.5, 0.6]]], requires_grad=True)
    counted = SPARSITY["l0"](z, lambda: z.detach() - theta, SparsityConfig(kind="l0", bandwidth=0.5))
    assert counted.tolist() == [[[0, 1], [0, 0], [1, 0], [1, 1]]]
    counted.sum().backward()
    torch.testing.assert_close(theta.grad, torch.tensor([[[-2 / 0.5, -2 / 0.5]]]))  # 0.3 and 0.56; 0.5 and 0.7
    assert z.grad is None
