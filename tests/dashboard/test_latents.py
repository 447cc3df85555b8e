import pytest
import torch

from sae_cli.dashboard.latents import nearest, parse_latents, top_latents
from sae_cli.dictionary.artifact import SAE
from sae_cli.errors import UserError


def test_ranges_and_single_latents():
    assert parse_latents("0-3,7, 2,5-5", 10) == [0, 1, 2, 3, 7, 5]
    assert parse_latents("all", 3) == parse_latents("0-99", 3) == [0, 1, 2]


@pytest.mark.parametrize("words", ["", "3-1", "a", "10", "10-12", "-1", "1;2", "1-", "٣"])
def test_what_is_no_latent_is_refused(words):
    with pytest.raises(UserError, match="--latents"):
        parse_latents(words, 10)


def test_nearest_are_those_of_the_cosine_matrix():
    W_FD = torch.randn(30, 5, generator=torch.Generator().manual_seed(0)) * torch.rand(30, 1)
    cosine_FF = torch.corrcoef(torch.cat([W_FD, -W_FD], dim=1))[:30, :30]  # rows of mean 0: correlation is the cosine
    cosine_FF.fill_diagonal_(-2)
    cosine_LK, index_LK = nearest(W_FD, torch.tensor([4, 29]), 3)
    best = cosine_FF[[4, 29]].topk(3)
    assert torch.equal(index_LK, best.indices)
    assert torch.allclose(cosine_LK, best.values, atol=1e-5)


class Rows:
    def validation(self, size):
        yield torch.tensor([[1.0, 0.0, 2.0], [1.0, 9.0, 0.0], [1.0, 0.0, 2.0]])


def test_the_top_latents_by_each_order():
    eye = torch.eye(3)
    directions = torch.tensor([[1.0, 0.0, 0.0], [0.9, 0.1, 0.0], [0.0, 0.0, 1.0]])
    sae = SAE("relu", eye, torch.zeros(3), directions, torch.zeros(3))
    assert top_latents(sae, Rows(), "density", 3, "cpu") == [0, 2, 1]
    assert top_latents(sae, Rows(), "max", 2, "cpu") == [1, 2]
    assert top_latents(sae, Rows(), "nearest", 2, "cpu") == [0, 1]
