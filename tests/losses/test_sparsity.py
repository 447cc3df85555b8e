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
