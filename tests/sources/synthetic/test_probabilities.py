"""Laws of firing probabilities and the shape of forests."""

import pytest
import torch

from sae_cli.config.compose import compose
from sae_cli.errors import UserError
from sae_cli.sources.synthetic.probabilities import Firing, firing, forest, law


def source(name, *words):
    return compose([f"source={name}", *(f"source.{word}" for word in words)]).source


def test_laws_by_hand():
    words = ["probability=0.4", "features=4"]
    zipf = law(source("features", *words, "zipf=0.5"), 4)
    assert zipf.tolist() == pytest.approx([0.4, 0.4 / 2**0.5, 0.4 / 3**0.5, 0.2])
    bounded = law(source("features", *words, "zipf=1", "probability_min=0.1"), 4)
    assert bounded.tolist() == pytest.approx(
        [0.4, 0.1 + 0.3 * (1 / 2 - 1 / 4) / 0.75, 0.1 + 0.3 * (1 / 12) / 0.75, 0.1]
    )
    assert law(source("features", *words, "law=geometric", "decay=0.5"), 3).tolist() == pytest.approx([0.4, 0.2, 0.1])


def test_log_uniform_probabilities_are_uniform_in_the_logarithm():
    p = law(source("sanity_variable", "probability_min=0.001", "probability=0.1"), 20_000)
    share = (p / 0.001).log10() / 2
    assert share.min() >= 0
    assert share.max() <= 1
    assert share.mean().item() == pytest.approx(0.5, abs=0.01)
    assert share.var().item() == pytest.approx(1 / 12, abs=0.002)


def test_trees_are_numbered_depth_first():
    assert forest(9, 1, 2, 2).tolist() == [-1, 0, 1, 1, 0, 4, 4, -1, -1]
    assert forest(5, 2, 1, 1).tolist() == [-1, 0, -1, 2, -1]
    assert forest(2, 0, 3, 3).tolist() == [-1, -1]


def test_marginals_multiply_along_the_path():
    p = torch.tensor([0.5, 0.4, 0.1, 0.2])
    marginal = Firing(p, torch.tensor([-1, 0, 1, -1])).marginal_G
    torch.testing.assert_close(marginal, torch.tensor([0.5, 0.2, 0.02, 0.2]))


@pytest.mark.parametrize(
    ("name", "expected"), [("sharkey", 5), ("sanity", 20), ("sanity_variable", 20), ("hierarchical", 7)]
)
def test_l0_is_the_expected_number_of_features_on_a_row(name, expected):
    assert firing(source(name)).marginal_G.sum().item() == pytest.approx(expected, rel=1e-4)


def test_published_settings():
    torch.testing.assert_close(firing(source("chanin")).marginal_G, torch.tensor([0.25, 0.05, 0.05, 0.05]))
    hierarchical = firing(source("chanin_hierarchical"))
    torch.testing.assert_close(hierarchical.marginal_G, torch.tensor([0.25, 0.05, 0.05, 0.05]))
    assert hierarchical.parents_G.tolist() == [-1, 0, -1, -1]
    tree = firing(source("tree"))
    assert tree.parents_G.tolist() == [-1, 0, 0, 0, -1, 4, 4, 4, -1, 8, 8, 8, *[-1] * 8]
    assert tree.p_G[:5].tolist() == pytest.approx([0.15, 0.2, 0.2, 0.2, 0.15])
    assert firing(source("sanity")).p_G.unique().tolist() == pytest.approx([0.00625])
    sharkey = firing(source("sharkey")).p_G
    torch.testing.assert_close(sharkey[1:] / sharkey[:-1], torch.full((511,), 0.99))
    bench = firing(source("synthbench"))
    assert bench.p_G[0] == pytest.approx(0.4)
    assert int((bench.parents_G >= 0).sum()) == 128 * (4 + 16 + 64)


def test_roots_of_trees_are_spread_over_the_ranks():
    made = firing(source("hierarchical", "features=24", "trees=2", "branching=1", "depth=1", "l0=0", "zipf=1"))
    roots = made.p_G[made.parents_G < 0]
    assert torch.sort(roots, descending=True).values.tolist() == pytest.approx([0.3 / (i + 1) for i in range(22)])
    assert roots[:2].tolist() == pytest.approx([0.3, 0.3 / 12])


def test_an_l0_out_of_reach_is_refused():
    with pytest.raises(UserError, match=r"source.l0=40.0 needs a firing probability"):
        firing(source("sharkey", "l0=40", "decay=0.9"))
