"""Reconstruction ICA against its formula, and its relation to gram."""

import pytest
import torch
from torch.nn.functional import normalize

from sae_cli.losses.directions import Directions
from sae_cli.losses.rica import DECAY, SHRINKAGE, whitener
from tests.losses.cases import omega, penalty, random_rows, settings


def test_rica_reconstructs_the_whitened_batch():
    W, x = random_rows(9), random_rows(50, 6, 1) @ random_rows(6, 6, 2) + 1
    S = torch.cov(x.T, correction=0)
    S = (1 - SHRINKAGE) * S + SHRINKAGE * S.diagonal().mean() * torch.eye(6)
    z = (x - x.mean(0)) @ torch.linalg.inv(torch.linalg.cholesky(S)).T
    U = normalize(W, dim=1)
    # whitening is unique up to a rotation; this one is symmetric
    values, vectors = torch.linalg.eigh(S)
    z = (x - x.mean(0)) @ vectors @ values.rsqrt().diag() @ vectors.T
    expected = (z - z @ U.T @ U).square().mean()
    torch.testing.assert_close(omega(W, settings("rica"), x_BD=x), expected)


def test_on_white_inputs_it_is_gram_in_another_unit():
    D, M = 6, 9
    x = torch.cat([torch.eye(D), -torch.eye(D)]).double() * D**0.5
    W = random_rows(M, D)
    gram = omega(W, settings("gram")) * M * (M - 1)
    torch.testing.assert_close(omega(W, settings("rica"), x_BD=x), (gram + D - M) / D)


def test_the_covariance_runs_and_the_whitener_waits_for_the_refresh():
    W, batches = random_rows(9), [random_rows(50, 6, seed) * (1 + seed) for seed in range(4)]
    state, keys = {}, settings("rica", refresh=3)
    first = None
    for step, x in enumerate(batches):
        before = state.get("covariance")
        penalty(Directions(W, step=step, x_BD=x, state=state), keys)
        first = state["whitener"] if step == 0 else first
        if step:
            centred = x - state["mean"]
            batch = centred.T @ centred / 50
            torch.testing.assert_close(state["covariance"], DECAY * before + (1 - DECAY) * batch)
        assert torch.equal(state["whitener"], first) == (step < 3)
    torch.testing.assert_close(state["whitener"], whitener(state["covariance"]))


@pytest.mark.parametrize("scale", [0.0, 1.0])
def test_a_singular_covariance_can_be_inverted(scale):
    S = torch.zeros(3, 3, dtype=torch.float64)
    S[0, 0], S[1, 1] = 1.0, scale
    assert whitener(S).isfinite().all()
