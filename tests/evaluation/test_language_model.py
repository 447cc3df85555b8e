"""Cross-entropy with an SAE spliced in, on paper with a toy model; test_exactness.py has a real one."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from sae_cli.evaluation.language_model import spliced_losses
from tests.evaluation.saes import identity_sae, random_sae, zero_sae


class Bigrams:
    """A language model of one lookup: activation = embedding[token], logits = activation @ unembedding."""

    def __init__(self, embedding_VD: Tensor, unembedding_DV: Tensor) -> None:
        self.embedding_VD, self.unembedding_DV = embedding_VD, unembedding_DV
        self.vocabulary = unembedding_DV.shape[1]

    def logits(
        self, tokens_CT: Tensor, hook: str | None = None, replace: Callable[[Tensor], Tensor] | None = None
    ) -> Tensor:
        x_CTD = self.embedding_VD[tokens_CT]
        return (x_CTD if replace is None else replace(x_CTD)) @ self.unembedding_DV


def toy(vocabulary: int = 7, width: int = 4) -> tuple[Bigrams, Tensor]:
    generator = torch.Generator().manual_seed(0)
    embedding = torch.randn(vocabulary, width, generator=generator)
    model = Bigrams(embedding, torch.randn(width, vocabulary, generator=generator))
    return model, torch.randint(vocabulary, (6, 9), generator=generator)


def test_two_token_model_on_paper() -> None:
    # Token 0 predicts 0 and 1 with 3/4 and 1/4, a zero activation predicts both with 1/2.
    model = Bigrams(torch.tensor([[math.log(3.0)], [0.0]]), torch.tensor([[1.0, 0.0]]))
    tokens = torch.tensor([[0, 0, 0, 1, 0]])  # predictions: 0->0, 0->0, 0->1, 1->0
    (result,) = spliced_losses(model, [tokens], "x", [zero_sae(1)], torch.zeros(1), keep_first=False)
    clean = (2 * math.log(4 / 3) + math.log(4) + math.log(2)) / 4
    divergence = 0.75 * math.log(3 / 2) + 0.25 * math.log(1 / 2)
    assert result == pytest.approx(
        {
            "ce_clean": clean,
            "ce_sae": math.log(2),
            "ce_zero": math.log(2),
            "ce_mean": math.log(2),
            "recovered_zero": 0,
            "recovered_mean": 0,
            "delta_nats": math.log(2) - clean,
            "delta_bits": 1 - clean / math.log(2),
            "kl": 3 * divergence / 4,
            "tokens": 4,
        },
        abs=1e-6,
    )


@pytest.mark.parametrize("keep_first", [False, True])
def test_identity_loses_nothing_and_ablations_lose_all(keep_first: bool) -> None:
    model, tokens = toy()
    mean_D = torch.tensor([0.5, -1.0, 0.0, 2.0])
    saes = [identity_sae(4), zero_sae(4), zero_sae(4, mean_D)]
    identity, zero, mean = spliced_losses(model, [tokens], "x", saes, mean_D, keep_first)
    assert identity["delta_nats"] == pytest.approx(0, abs=1e-6)
    assert identity["kl"] == pytest.approx(0, abs=1e-6)
    assert identity["recovered_zero"] == identity["recovered_mean"] == pytest.approx(1, abs=1e-6)
    assert zero["recovered_zero"] == 0
    assert zero["ce_sae"] == zero["ce_zero"]
    assert mean["recovered_mean"] == 0
    assert mean["kl"] > 0
    assert identity["tokens"] == 6 * 8


def test_first_row_keeps_its_value_in_every_replacement() -> None:
    model, tokens = toy()
    pair = tokens[:, :2]  # the only prediction is made at the first row
    sae = random_sae(4, 5, torch.float32)
    (kept,) = spliced_losses(model, [pair], "x", [sae], torch.ones(4), keep_first=True)
    assert kept["ce_clean"] == kept["ce_sae"] == kept["ce_zero"] == kept["ce_mean"]
    (replaced,) = spliced_losses(model, [pair], "x", [sae], torch.ones(4), keep_first=False)
    assert len({replaced[name] for name in ("ce_clean", "ce_sae", "ce_zero", "ce_mean")}) == 4


def test_batches_and_memory_do_not_matter() -> None:
    model, tokens = toy()
    saes = [random_sae(4, 5, torch.float32), identity_sae(4)]
    whole = spliced_losses(model, [tokens], "x", saes, torch.ones(4), True)
    cut = spliced_losses(model, list(tokens.split([1, 3, 2])), "x", saes, torch.ones(4), True)
    two_contexts, least = (spliced_losses(model, [tokens], "x", saes, torch.ones(4), True, m) for m in (2100, 1))
    for one, *others in zip(whole, cut, two_contexts, least, strict=True):
        for other in others:
            assert other == pytest.approx(one, rel=1e-5, abs=1e-6)


def test_members_do_not_influence_each_other() -> None:
    model, tokens = toy()
    sae = random_sae(4, 5, torch.float32)
    (alone,) = spliced_losses(model, [tokens], "x", [sae], torch.ones(4), True)
    together = spliced_losses(model, [tokens], "x", [zero_sae(4), sae, identity_sae(4)], torch.ones(4), True)
    assert together[1] == alone
