"""Sparse draws against dense ones."""

import pytest
import torch

from sae_cli.sources.synthetic.events import Events, bernoulli


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def test_sparse_rows_equal_the_dense_product():
    events = Events(4, torch.tensor([2, 0, 2]), torch.tensor([1, 0, 2]), torch.tensor([2.0, 3.0, 0.5])).by_row()
    table = torch.tensor([[3.0, 0, 0], [0, 0, 0], [0, 2.0, 0.5], [0, 0, 0]])
    directions = torch.randn(3, 5, generator=seeded())
    assert torch.equal(events.strengths(3), table)
    torch.testing.assert_close(events.activations(directions), table @ directions)
    assert torch.equal(events.between(1, 3).strengths(3), table[1:3])


def test_rows_without_any_event_are_zero():
    none = torch.zeros(0, dtype=torch.int64)
    assert torch.equal(Events(3, none, none, torch.zeros(0)).activations(torch.ones(2, 4)), torch.zeros(3, 4))


def test_bernoulli_has_each_probability_and_no_cell_twice():
    p = torch.tensor([0.0, 1.0, 0.6, 0.5, 0.26, 0.03, 0.001])
    rows = 200_000
    row, feature = bernoulli(p, rows, seeded())
    assert len(torch.unique(row * len(p) + feature)) == len(row)
    rate = torch.bincount(feature, minlength=len(p)) / rows
    assert torch.all((rate - p).abs() <= 5 * (p * (1 - p) / rows).sqrt())


def test_bernoulli_firings_are_independent():
    p = torch.tensor([0.5, 0.4, 0.1])
    row, feature = bernoulli(p, 100_000, seeded())
    fires = torch.zeros(100_000, 3).index_put((row, feature), torch.ones(len(row)))
    together = fires.T @ fires / len(fires)
    for i, j in ((0, 1), (0, 2), (1, 2)):
        assert together[i, j].item() == pytest.approx(float(p[i] * p[j]), abs=0.005)
    lag = (fires[1:] * fires[:-1]).mean(0)
    torch.testing.assert_close(lag, p.square(), rtol=0, atol=0.006)
