import pytest
import torch
from torch.nn.functional import normalize

from sae_cli.evaluation import composition as module
from sae_cli.evaluation.composition import K, _reconstruct, composition, meta_ev


def rows(count: int, width: int, seed: int) -> torch.Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


def sums(count: int, width: int, atoms: int, parts: int) -> torch.Tensor:
    """Sums of `parts` random atoms of a small pool."""
    generator = torch.Generator().manual_seed(5)
    pool = normalize(rows(atoms, width, 6), dim=1)
    return torch.stack([pool[torch.randperm(atoms, generator=generator)[:parts]].sum(0) for _ in range(count)])


def test_reconstruction_written_out():
    x, W_dec, W_enc, b = rows(6, 5, 0), rows(10, 5, 1), rows(10, 5, 2), rows(10, 1, 3)[:, 0]
    pre = x @ W_enc.T + b
    smallest = pre.flatten().sort(descending=True).values[K * 6 - 1]
    kept = torch.where(pre >= smallest, pre, 0).relu()
    assert (kept > 0).sum(1).unique().numel() > 1
    assert torch.allclose(_reconstruct(x, W_dec, W_enc, b), kept @ W_dec, atol=1e-5)


def test_explained_variance_is_about_the_mean(monkeypatch):
    """With reconstructions forced to the mean nothing of the variance is explained, however far the mean is."""
    monkeypatch.setattr(module, "_reconstruct", lambda x, *parameters: 0 * parameters[0].sum() + torch.zeros_like(x))
    assert meta_ev(rows(64, 8, 0) + 10, 16, 0) == pytest.approx(0, abs=1e-6)
    monkeypatch.setattr(module, "_reconstruct", lambda x, *parameters: 0 * parameters[0].sum() + x / 2)
    assert meta_ev(rows(64, 8, 0) + 10, 16, 0) == pytest.approx(0.75)


def test_sums_of_few_parts_are_told_from_random_directions():
    W = 3 * sums(512, 64, atoms=96, parts=3)
    section = composition(W, torch.ones(512, dtype=torch.bool))
    assert section["ev"] > 0.85
    assert section["random_ev"] < section["ev"] - 0.2
    assert (section["latents"], section["k"], section["count"]) == (128, 4, 512)
    random = composition(rows(512, 64, 3), torch.ones(512, dtype=torch.bool))
    assert random["ev"] == pytest.approx(random["random_ev"], abs=0.03)


def test_norms_and_dead_latents_do_not_matter_and_a_seed_repeats():
    W = sums(128, 16, atoms=24, parts=2)
    alive = torch.ones(160, dtype=torch.bool)
    alive[128:] = False
    first = composition(W, alive[:128], seed=1)
    assert composition(torch.cat([W * 2, rows(32, 16, 0)]), alive, seed=1) == pytest.approx(first, rel=1e-4)
    assert composition(W, alive[:128], seed=1) == first != composition(W, alive[:128], seed=2)


def test_too_few_directions():
    alive = torch.zeros(64, dtype=torch.bool)
    alive[:15] = True
    assert composition(rows(64, 8, 0), alive) == {"ev": None, "random_ev": None, "latents": 3, "k": 4, "count": 15}
