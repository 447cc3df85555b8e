"""Nearest cosines on paper, against the naive formula, and the random baseline against table and simulation."""

import math

import numpy as np
import pytest
import torch

from sae_cli.evaluation.geometry import EDGES, geometry, nearest_cosines, random_cosines, random_histogram

# n, d, mean |c|, nearest signed, 10th, 100th; to the three digits printed in the table of random directions.
TABLE = [
    (2048, 512, 0.035, 0.151, 0.115, 0.073),
    (8192, 512, 0.035, 0.167, 0.134, 0.099),
    (12288, 768, 0.029, 0.140, 0.114, 0.087),
    (24576, 768, 0.029, 0.146, 0.121, 0.095),
    (65536, 2304, 0.017, 0.089, 0.075, 0.062),
]


@pytest.mark.parametrize(("n", "d", "mean_abs", "nearest", "tenth", "hundredth"), TABLE)
def test_random_baseline_table(n: int, d: int, mean_abs: float, nearest: float, tenth: float, hundredth: float) -> None:
    random = random_cosines(n, d)
    found = [round(random[name], 3) for name in ("mean_abs", "nearest_mean", "top10", "top100")]
    assert found == [mean_abs, nearest, tenth, hundredth]
    assert random["top1"] == random["nearest_mean"]
    assert random["mean_abs"] == pytest.approx(math.sqrt(2 / (math.pi * d)), rel=1e-3)


LARGE = [(2048, 512, 5), (8192, 512, 2), (12288, 768, 1), (24576, 768, 1)]
"""The table's sizes but the last: n, d, draws."""


@pytest.mark.parametrize(
    ("n", "d", "count"), [(512, 64, 20), (1000, 32, 20), *(pytest.param(*row, marks=pytest.mark.slow) for row in LARGE)]
)
def test_random_baseline_is_what_random_directions_give(n: int, d: int, count: int) -> None:
    generator = torch.Generator().manual_seed(0)
    draws = [nearest_cosines(torch.randn(n, d, generator=generator), tile=200) for _ in range(count)]
    random = random_cosines(n, d)
    for name in ("nearest_mean", "nearest_median", "nearest_p99", "mean_abs", "top10", "top100"):
        simulated = float(np.mean([statistics[name] for statistics, _ in draws]))
        assert simulated == pytest.approx(random[name], rel=0.01)
    counts, _ = np.histogram(torch.cat([nearest for _, nearest in draws]), bins=EDGES)
    shares = np.array(random_histogram(n, d))
    assert shares.sum() == pytest.approx(1)
    # Total variation distance; about sqrt(bins / rows) for a right baseline.
    assert np.abs(counts / counts.sum() - shares).sum() / 2 < 0.05


@pytest.mark.slow
def test_random_baseline_at_the_tables_largest_size() -> None:
    """A sample of rows against all 65,536 directions, for time and memory."""
    n, d, rows = 65536, 2304, 1000
    unit = torch.nn.functional.normalize(torch.randn(n, d, generator=torch.Generator().manual_seed(0)), dim=1)
    cosine = torch.cat([(unit[:rows] @ part.T).topk(101, dim=1).values for part in unit.split(8192)], dim=1)
    largest = cosine.topk(101, dim=1).values[:, 1:]  # without the row itself
    random = random_cosines(n, d)
    for name, rank in (("top1", 1), ("top10", 10), ("top100", 100)):
        assert largest[:, rank - 1].mean().item() == pytest.approx(random[name], rel=0.01)


def test_three_dimensions_in_closed_form() -> None:
    # In R^3 a cosine is uniform on [-1, 1]: with n = 2, E c = 0 and E|c| = 1/2; the largest of m has mean 1 - 2/(m+1).
    assert random_cosines(2, 3)["nearest_mean"] == pytest.approx(0, abs=1e-6)
    random = random_cosines(12, 3)
    assert random["mean_abs"] == pytest.approx(0.5)
    assert random["nearest_mean"] == pytest.approx(1 - 2 / 12, abs=1e-6)
    assert random["top10"] == pytest.approx(1 - 20 / 12, abs=1e-6)
    assert random["nearest_median"] == pytest.approx(2 * 0.5 ** (1 / 11) - 1)
    assert random["top100"] is None


def test_paper_case() -> None:
    # At 0, 60 and 180 degrees, of different lengths: cosines 1/2, -1, -1/2.
    W = torch.tensor([[2.0, 0.0], [0.5, math.sqrt(3) / 2], [-3.0, 0.0]])
    statistics, nearest = nearest_cosines(W)
    assert nearest.tolist() == pytest.approx([0.5, 0.5, -0.5])
    assert statistics["count"] == 3
    assert statistics["nearest_mean"] == pytest.approx(1 / 6)
    assert statistics["nearest_median"] == pytest.approx(0.5)
    assert statistics["mean_abs"] == pytest.approx(2 / 3)
    assert statistics["top1"] == pytest.approx(1 / 6)
    assert statistics["top10"] is None


def test_tiles_do_not_matter() -> None:
    W = torch.randn(150, 8, generator=torch.Generator().manual_seed(0))
    whole, nearest = nearest_cosines(W, tile=1000)
    unit = W / W.norm(dim=1, keepdim=True)
    naive = (unit @ unit.T).fill_diagonal_(-2).sort(dim=1, descending=True).values
    assert torch.allclose(nearest, naive[:, 0], atol=1e-6)
    assert [whole[f"top{k}"] for k in (1, 10, 100)] == pytest.approx(naive[:, [0, 9, 99]].mean(0).tolist(), abs=1e-6)
    for tile in (1, 64, 149):
        assert nearest_cosines(W, tile)[0] == pytest.approx(whole, abs=1e-6)


def test_hubs_on_paper() -> None:
    # Latent 2 is the nearest of all others and latent 4 its own; latent 0 has no direction.
    W = torch.tensor([[0.0] * 5, [1.0, 1, 0, 0, 0], [1.0, 0, 0, 0, 0], [1.0, 0, 2, 0, 0], [1.0, 0, 0, 0.5, 0]])
    statistics, _ = nearest_cosines(W)
    assert (statistics["hub"], statistics["hub_in_degree"], statistics["hub10_share"]) == (2, 3, 1)
    alive, _ = nearest_cosines(W, 2, torch.tensor([True, True, False, True, True]))
    assert (alive["count"], alive["hub"], alive["hub_in_degree"]) == (3, 4, 2)


def test_one_hub_explains_a_peak() -> None:
    # Every direction shares a part with one that is the nearest of all; without it there is no such hub.
    W = torch.randn(300, 256, generator=torch.Generator().manual_seed(0))
    W = W / W.norm(dim=1, keepdim=True)
    W += W[17].clone()
    section = geometry(W, torch.arange(300) != 17)
    assert (section["all"]["hub"], section["all"]["hub_in_degree"]) == (17, 299)
    assert section["alive"]["hub_in_degree"] < 30


@pytest.mark.parametrize(("n", "d"), [(10, 24), (300, 24), (1000, 64), (2000, 256)])
def test_random_in_degrees_are_near_their_limit(n: int, d: int) -> None:
    generator = torch.Generator().manual_seed(0)
    draws = [nearest_cosines(torch.randn(n, d, generator=generator))[0] for _ in range(max(12, 3000 // n))]
    random = random_cosines(n, d)
    for name in ("hub_in_degree", "hub10_share"):
        assert np.mean([draw[name] for draw in draws]) == pytest.approx(random[name], rel=0.12), name
    assert random["hub"] is None
    assert random_cosines(n, 3)["hub_in_degree"] is None


def test_alive_directions_are_compared_among_themselves() -> None:
    # Latent 2 duplicates latent 0 but is dead.
    W = torch.tensor([[1.0, 0.0], [0.0, 1.0], [2.0, 0.0]])
    section = geometry(W, torch.tensor([True, True, False]))
    assert section["all"]["nearest_mean"] == pytest.approx(2 / 3)
    assert section["alive"]["nearest_mean"] == section["self_mmcs"] == pytest.approx(0)
    assert (section["all"]["count"], section["alive"]["count"], section["random_alive"]["count"]) == (3, 2, 2)
    histogram = section["histogram"]
    assert len(histogram["edges"]) == len(histogram["all"]) + 1 == len(histogram["random"]) + 1
    assert sum(histogram["all"]) == pytest.approx(1)
    assert histogram["all"][-1] == pytest.approx(2 / 3)


@pytest.mark.parametrize("alive", [[False, False, False], [True, False, False]])
def test_too_few_directions_give_none(alive: list[bool]) -> None:
    section = geometry(torch.eye(3), torch.tensor(alive))
    assert section["self_mmcs"] is None
    assert section["random_alive"]["nearest_mean"] is None
    assert sum(section["histogram"]["alive"]) == 0
    assert section["all"]["nearest_mean"] == 0


def test_zero_and_broken_rows_are_no_directions() -> None:
    W = torch.tensor([[1.0, 0.0], [0.0, 0.0], [1.0, 1.0], [math.nan, 1.0]])
    statistics, _ = nearest_cosines(W)
    assert statistics["count"] == 2
    assert statistics["nearest_mean"] == pytest.approx(math.sqrt(0.5))
