"""Examples and statistics against brute force over all activations at once."""

import pytest
import torch

from sae_cli.dashboard.examples import Examples, Statistics, sample_keys

CONTEXTS, LENGTH, LATENTS = 40, 12, 7
BEFORE, AFTER = 4, 2


@pytest.fixture(scope="module")
def acts_CTL():
    """Sparse activations from few values, so that many are equal; latent 5 is dead, latent 6 fires in two contexts."""
    generator = torch.Generator().manual_seed(0)
    size_CTL = torch.randint(1, 5, (CONTEXTS, LENGTH, LATENTS), generator=generator).float()
    fires_CTL = torch.rand(CONTEXTS, LENGTH, LATENTS, generator=generator) < 0.15
    fires_CTL[:, :, 5:] = False
    fires_CTL[[3, 30], 7, 6] = True
    return size_CTL * fires_CTL


def collect(score_CTL, acts_CTL, count, batch):
    examples = Examples(LATENTS, count, BEFORE, AFTER, "cpu")
    for start in range(0, CONTEXTS, batch):
        part = slice(start, start + batch)
        examples.add(score_CTL[part], acts_CTL[part], torch.arange(CONTEXTS)[part] + 100)
    return examples.found


def brute_force(score_CTL, acts_CTL, latent, count):
    """(score, context, position, window) of a latent's best contexts, by sorting them all."""
    best = []
    for context in range(CONTEXTS):
        scores = score_CTL[context, :, latent].tolist()
        position = scores.index(max(scores))
        window = [
            float(acts_CTL[context, t, latent]) if 0 <= t < LENGTH else 0.0
            for t in range(position - BEFORE, position + AFTER + 1)
        ]
        if scores[position] > 0:
            best.append((-scores[position], context + 100, position, window))
    return [(-score, *rest) for score, *rest in sorted(best)[:count]]


@pytest.mark.parametrize("batch", [1, 3, 40])
@pytest.mark.parametrize("count", [1, 6, 50])
def test_the_strongest_equal_brute_force(acts_CTL, batch, count):
    found = collect(acts_CTL, acts_CTL, count, batch)
    for latent in range(LATENTS):
        expected = brute_force(acts_CTL, acts_CTL, latent, count)
        columns = (found.score_KL, found.context_KL, found.position_KL, found.window_KLW)
        rows = list(zip(*(column[:, latent].tolist() for column in columns), strict=True))
        assert rows[: len(expected)] == expected
        assert all(score == 0 for score, *_ in rows[len(expected) :])


@pytest.mark.parametrize("batch", [1, 7])
def test_a_sample_does_not_depend_on_the_batch_and_keeps_firing_tokens_only(acts_CTL, batch):
    context_C = torch.arange(CONTEXTS)
    keys = torch.cat(
        [sample_keys(acts_CTL[i : i + batch], context_C[i : i + batch], 1) for i in range(0, CONTEXTS, batch)]
    )
    assert torch.equal(keys, sample_keys(acts_CTL, context_C, 1))
    assert torch.equal(keys > 0, acts_CTL > 0)
    assert not torch.equal(keys, sample_keys(acts_CTL, context_C, 2))
    found = collect(keys, acts_CTL, 4, batch)
    peak_KL = found.window_KLW[:, :, BEFORE]
    assert torch.equal(peak_KL > 0, found.score_KL > 0)


def test_a_sample_is_uniform():
    """Of tokens that all fire, weak and strong ones are drawn alike: the mean of many draws is the mean of all."""
    acts_CTL = torch.rand(2000, 1, 50, generator=torch.Generator().manual_seed(3))
    examples = Examples(50, 20, 0, 0, "cpu")
    context_C = torch.arange(2000)
    examples.add(sample_keys(acts_CTL, context_C, 5), acts_CTL, context_C)
    drawn = examples.found.window_KLW.flatten()
    # 1,000 draws of a uniform value: the mean lies within 4 standard errors of a half.
    assert abs(float(drawn.mean()) - 0.5) < 4 * (1 / 12 / 1000) ** 0.5


def test_statistics_equal_sums_over_everything(acts_CTL):
    edges = torch.tensor([0.5, 1.5, 2.5, 3.5])
    acts_NL = acts_CTL.flatten(0, 1)
    statistics = Statistics(LATENTS, edges, "cpu")
    for part_NL in acts_NL.split(100):
        statistics.add(part_NL)
    assert statistics.rows == CONTEXTS * LENGTH
    assert torch.equal(statistics.fired_L, (acts_NL != 0).sum(0))
    assert torch.allclose(statistics.sum_L, acts_NL.double().sum(0))
    for latent in range(LATENTS):
        counts = [int((acts_NL[:, latent] == 1).sum()), int((acts_NL[:, latent] == 2).sum())]
        # 4 lies beyond the last edge and counts in the last bin.
        assert statistics.counts_LH[latent].tolist() == [*counts, int((acts_NL[:, latent] >= 3).sum())]
