"""What each generator draws, against what its paper says."""

import pytest
import torch
from scipy.stats import multivariate_normal, norm

from sae_cli.config.compose import compose
from sae_cli.sources.synthetic.draws import Draws, children_table, loadings

ROWS = 60_000


def drawn(name, *words, rows=ROWS):
    draws = Draws(compose([f"source={name}", *(f"source.{word}" for word in words)]).source)
    strengths = draws.events(rows, torch.Generator().manual_seed(0)).strengths(len(draws.p_G))
    return draws, strengths, (strengths > 0).float()


def near(fires, expected):
    """Rates within five standard errors."""
    error = 5 * (expected * (1 - expected) / len(fires)).sqrt() + 1e-6
    assert torch.all((fires.mean(0) - expected).abs() <= error)


@pytest.mark.parametrize("name", ["chanin", "chanin_hierarchical", "tree", "tms", "hierarchical"])
def test_rates_are_the_marginal_probabilities(name):
    draws, _, fires = drawn(name)
    near(fires, draws.firing.marginal_G)


@pytest.mark.parametrize("name", ["chanin_hierarchical", "tree", "hierarchical", "synthbench"])
def test_a_child_fires_only_with_its_parent(name):
    small = ["features=200", "width=32", "trees=3", "depth=2", "branching=3"] if name == "synthbench" else []
    draws, _, fires = drawn(name, *small, rows=20_000)
    children = (draws.parents_G >= 0).nonzero().squeeze(1)
    assert fires[:, children].sum() > 100
    assert torch.all(fires[:, children] <= fires[:, draws.parents_G[children]])


def test_chanin_is_independent_with_strength_one():
    _, strengths, fires = drawn("chanin")
    together = fires.T @ fires / ROWS
    assert together[0, 1].item() == pytest.approx(0.25 * 0.05, abs=0.002)
    assert strengths.unique().tolist() == [0, 1]
    _, _, fires = drawn("chanin_hierarchical")
    assert (fires.T @ fires / ROWS)[0, 1].item() == pytest.approx(0.05, abs=0.004)


def test_exclusive_siblings_never_fire_together():
    _, _, fires = drawn("tree")
    assert fires[:, 1:4].sum(1).max() == 1
    given_parent = fires[fires[:, 0] > 0][:, 1:4]
    near(given_parent, torch.full((3,), 0.2))
    _, _, loose = drawn("tree", "exclusive=false")
    assert loose[:, 1:4].sum(1).max() > 1


def test_tms_fires_one_feature_of_each_set_with_uniform_strength():
    _, strengths, fires = drawn("tms")
    assert torch.all(fires[:, :2].sum(1) == 1)
    assert torch.all(fires[:, 2:].sum(1) == 1)
    fired = strengths[strengths > 0]
    assert fired.max() <= 1
    assert fired.mean().item() == pytest.approx(0.5, abs=0.01)
    assert fired.var().item() == pytest.approx(1 / 12, abs=0.003)


def test_sharkey_rates_and_shared_draws():
    draws, strengths, fires = drawn("sharkey", rows=256 * 800)
    assert fires.sum(1).mean().item() == pytest.approx(5, abs=0.15)
    fired = strengths[strengths > 0]
    assert (fired.mean().item(), fired.var().item()) == pytest.approx((0.5, 1 / 12), abs=0.003)
    # Counts of 256 rows that share their draw vary more than independent ones: var = np + n^2 p^2 (4/3 - 1) and less.
    counts = fires[:, :20].view(800, 256, 20).sum(1)
    n_p = 256 * draws.p_G[:20]
    expected = n_p * (1 - draws.p_G[:20]) + (256**2 - 256) * draws.p_G[:20].square() / 3
    assert (counts.var(0) / expected).mean().item() == pytest.approx(1, abs=0.1)
    _, _, alone = drawn("sharkey", "correlation=0", rows=256 * 200)
    counts = alone[:, :20].view(200, 256, 20).sum(1)
    assert (counts.var(0) / (n_p * (1 - draws.p_G[:20]))).mean().item() == pytest.approx(1, abs=0.1)


def test_sanity_has_twenty_lognormal_features_on_a_row():
    _, strengths, fires = drawn("sanity", rows=5000)
    assert fires.sum(1).mean().item() == pytest.approx(20, abs=0.4)
    logs = strengths[strengths > 0].log()
    assert (logs.mean().item(), logs.std().item()) == pytest.approx((0, 0.25), abs=0.005)


def test_groups_of_the_hierarchical_source_fire_together():
    draws, _, fires = drawn("hierarchical", "features=40", "trees=0", "rank=20", "zipf=0", "correlation=0.6", "l0=8")
    near(fires, draws.p_G)
    lift = (fires.T @ fires / ROWS) / torch.outer(draws.p_G, draws.p_G)
    same = torch.arange(20)
    below = norm.ppf(0.2)  # each fires with probability 8 / 40
    both = multivariate_normal([0, 0], [[1, 0.6], [0.6, 1]]).cdf([below, below])
    assert lift[same, same + 20].mean().item() == pytest.approx(both / 0.04, rel=0.02)
    assert lift[0, 1:20].mean().item() == pytest.approx(1, abs=0.03)


def test_synthbench_is_scaled_by_its_parents_and_has_the_published_l0():
    words = ["width=32", "magnitude_spread=0", "trees=128"]
    draws, strengths, fires = drawn("synthbench", *words, rows=300)
    assert fires.sum(1).mean().item() == pytest.approx(34, abs=2)  # SynthSAEBench-16k: about 34
    assert (draws.mean_G[0].item(), draws.mean_G[-1].item()) == pytest.approx((5, 4))
    torch.testing.assert_close(strengths[fires > 0], draws.mean_G.expand_as(strengths)[fires > 0])


def test_a_child_of_synthbench_is_as_strong_as_its_parent():
    words = ["features=40", "width=32", "trees=8", "branching=1", "depth=1", "correlation=0", "magnitude_spread=0.3"]
    draws, strengths, fires = drawn("synthbench", *words)
    parent, child = strengths[:, :16:2], strengths[:, 1:16:2]
    relative = parent / draws.mean_G[:16:2]
    strong = (fires[:, 1:16:2] > 0) & (relative > 1.3)
    weak = (fires[:, 1:16:2] > 0) & (relative < 0.7)
    assert child[strong].mean() / relative[strong].mean() == pytest.approx(draws.mean_G[1:16:2].mean().item(), rel=0.1)
    assert child[weak].mean() < 0.6 * child[strong].mean()


def test_copula_loadings():
    source = compose(["source=synthbench", "source.features=2000", "source.width=8", "source.trees=0"]).source
    loading = loadings(source, torch.full((2000,), -1))
    assert loading.shape == (2000, 25)
    assert loading.std().item() == pytest.approx(0.1, rel=0.02)
    assert loading.norm(dim=1).max() < 1


def test_children_table():
    table = children_table(torch.tensor([-1, 0, 0, -1, 3]))
    assert table.tolist() == [[1, 2], [-1, -1], [-1, -1], [4, -1], [-1, -1]]
