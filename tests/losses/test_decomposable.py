"""The decomposability penalty and the meta-SAE inside it."""

import torch
from torch.nn.functional import normalize

from sae_cli.losses.decomposable import PARAMETERS, reconstruct
from sae_cli.losses.directions import Directions
from tests.losses.cases import omega, penalty, random_rows, settings, state_after_one_call

KEYS = settings("decomposable", meta_lr=0.01)


def test_the_formula_with_rows_and_frozen():
    W, frozen, rows = random_rows(9), random_rows(3, seed=1), torch.tensor([2, 5])
    state = state_after_one_call(W, KEYS, frozen_GD=frozen)
    W_enc, b_enc, W_dec, b_dec = (state[name] for name in PARAMETERS)
    assert W_dec.shape == (6, 6)
    U = normalize(W, dim=1)
    z = torch.relu((U - b_dec) @ W_enc + b_enc)
    z = torch.where(z >= z.sort(1, descending=True).values[:, 1:2], z, 0)
    error = (U - z @ W_dec - b_dec).square().sum(1)
    expected = torch.exp(-error[rows] / 0.25).mean()
    torch.testing.assert_close(omega(W, KEYS, rows_N=rows, frozen_GD=frozen, state=state), expected)


def test_each_call_is_a_step_of_adam_on_the_reconstruction():
    W = random_rows(9)
    state = state_after_one_call(W, KEYS)
    live = [state[name].clone().requires_grad_() for name in PARAMETERS]
    optimiser = torch.optim.Adam(live, lr=0.01)
    for place, name in enumerate(PARAMETERS):
        names = {"step": "step", "exp_avg": f"{name}.m", "exp_avg_sq": f"{name}.v"}
        optimiser.state[live[place]] = {ours: state[theirs].clone() for ours, theirs in names.items()}
    U = normalize(W, dim=1)
    (U - reconstruct(2, U, *live)).square().sum(1).mean().backward()
    optimiser.step()
    penalty(Directions(W, state=state), KEYS)
    live[2].data = normalize(live[2].data, dim=1)
    for name, expected in zip(PARAMETERS, live, strict=True):
        torch.testing.assert_close(state[name], expected.detach())


def test_sparse_sums_of_others_cost_more_than_random_directions():
    basis = torch.linalg.qr(random_rows(12, 12)).Q
    pairs = torch.combinations(torch.arange(12))[:48]
    composite = torch.cat([basis, basis[pairs[:, 0]] + basis[pairs[:, 1]]])
    keys = settings("decomposable", meta_lr=0.01, meta_share=0.2)
    values = []
    for W in (composite, random_rows(60, 12)):
        state = {}
        for step in range(300):
            value = penalty(Directions(W, step=step, state=state), keys)
        values.append(value.item())
    assert values[0] > 2 * values[1]


def test_the_start_follows_the_seed():
    W = random_rows(9)
    one, same, other = (state_after_one_call(W, KEYS, seed=seed) for seed in (1, 1, 2))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["W_dec"], other["W_dec"])
