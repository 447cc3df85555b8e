"""Rows, their statistics, and their reproducibility."""

import itertools

import pytest
import torch

from sae_cli.config.compose import compose
from sae_cli.config.schema_data import SourceConfig
from sae_cli.sources.synthetic import SyntheticSource, fingerprint
from sae_cli.sources.synthetic.directions import true_directions


def source(**keys):
    defaults = {"kind": "features", "features": 40, "width": 16, "probability": 0.2}
    return SourceConfig(**{**defaults, **keys})


def opened(**keys):
    return SyntheticSource(source(**keys), 0, 5000)


def firings(made, count=40_000):
    events = made.draws.events(count, torch.Generator().manual_seed(0))
    return (events.strengths(len(made.directions_GD)) > 0).float()


def test_features_fire_with_zipf_s_probabilities():
    rates = firings(opened(probability=0.3, zipf=0.7)).mean(0)
    expected = 0.3 / torch.arange(1, 41) ** 0.7
    torch.testing.assert_close(rates, expected, rtol=0, atol=0.01)


def test_pairs_copy_on_the_stated_share_of_rows():
    fires = firings(opened(cooccurrence=0.6))
    together = (fires[:, 0] * fires[:, 1]).mean()
    assert together.item() == pytest.approx(0.6 * 0.2 + 0.4 * 0.04, abs=0.01)
    apart = (fires[:, 1] * fires[:, 2]).mean()
    assert apart.item() == pytest.approx(0.04, abs=0.01)


def test_three_features_are_frequent_frequent_and_rare():
    made = SyntheticSource(SourceConfig("three_features", probability=0.15, rare=0.01, cooccurrence=0.8), 0, 100)
    fires = firings(made)
    assert fires.mean(0).tolist() == pytest.approx([0.15, 0.15, 0.01], abs=0.007)
    assert (fires[:, 0] * fires[:, 1]).mean().item() == pytest.approx(0.8 * 0.15 + 0.2 * 0.15**2, abs=0.007)
    assert torch.equal(true_directions(made.settings), torch.eye(3))


def test_rows_are_sums_of_directions_with_strengths_in_the_stated_range():
    made = opened(features=16, orthogonal=True, magnitude=2.0, magnitude_spread=0.25)
    strengths = made.rows(2000, 1) @ made.directions_GD.T
    fired = strengths[strengths.abs() > 1e-4]
    assert fired.min() >= 1.5 - 1e-4
    assert fired.max() <= 2.5 + 1e-4
    assert fired.mean().item() == pytest.approx(2.0, abs=0.02)


def test_noise_has_the_stated_deviation():
    made = opened(probability=1e-9, noise=0.3)
    assert made.rows(5000, 1).std().item() == pytest.approx(0.3, abs=0.005)


def test_directions_are_unit_and_orthonormal_when_asked():
    torch.testing.assert_close(opened().true_GD.norm(dim=1), torch.ones(40))
    orthonormal = opened(features=16, orthogonal=True).true_GD
    torch.testing.assert_close(orthonormal @ orthonormal.T, torch.eye(16), rtol=0, atol=1e-5)


def test_scale_mean_and_variance_describe_the_rows():
    made = opened()
    rows = made.rows(60_000, 99)
    assert (rows * made.scale).square().sum(1).mean().item() == pytest.approx(16, rel=0.02)
    torch.testing.assert_close(rows.mean(0), made.mean_D, rtol=0, atol=0.02)
    assert (rows - rows.mean(0)).square().sum(1).mean().item() == pytest.approx(made.variance, rel=0.02)


def test_any_batch_can_be_drawn_alone():
    whole = list(itertools.islice(opened().batches(0, 64), 6))
    assert torch.equal(next(opened().batches(4, 64)), whole[4])
    assert not torch.equal(whole[0], whole[1])
    other_order = SyntheticSource(source(), 1, 10)
    assert not torch.equal(next(other_order.batches(0, 64)), whole[0])


@pytest.mark.parametrize("size", [100, 4096, 5000])
def test_validation_rows_do_not_depend_on_the_batch_size(size):
    rows = torch.cat(list(opened().validation(size)))
    assert rows.shape == (5000, 16)
    assert torch.equal(rows, torch.cat(list(opened().validation(777))))


SMALL = {
    "synthbench": ["source.features=300", "source.width=32", "source.trees=3"],
    "sanity": ["source.features=400"],
    "sanity_variable": ["source.features=400"],
}
SHIPPED = ["three_features", "features", "chanin", "chanin_hierarchical", "sharkey", "tms", "tree", "sanity"]
SHIPPED += ["sanity_variable", "synthbench", "hierarchical"]


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_sources_are_pure_and_tell_their_features(name):
    config = compose([f"source={name}", *SMALL.get(name, [])])
    first, second = (SyntheticSource(config.source, 0, 700) for _ in range(2))
    assert torch.equal(next(first.batches(3, 64)), next(itertools.islice(second.batches(0, 64), 3, None)))
    told = list(first.validation_features(300))
    assert [len(x) for x, _ in told] == [300, 300, 100]
    assert torch.equal(torch.cat([x for x, _ in told]), torch.cat(list(second.validation(128))))
    for x, strengths in told:
        torch.testing.assert_close(strengths @ first.true_GD, x, rtol=1e-4, atol=1e-4)
    assert first.parents_G.dtype == torch.int64
    assert first.parents_G.shape == (len(first.true_GD),)
    assert first.d_model == first.true_GD.shape[1] == (config.source.width or 3)


def test_the_fingerprint_follows_the_settings():
    assert fingerprint(source()) == fingerprint(source())
    assert fingerprint(source()) != fingerprint(source(seed=1))
