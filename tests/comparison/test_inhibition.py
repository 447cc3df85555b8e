"""Decoder orthogonality, not encoder orthogonality, tells true features from composites.

Two dictionaries that reconstruct their data without error. In `exclusive` one of n features is present at a time:
a latent may read x_i minus all others (inhibition between exclusive features), while it writes e_i alone. In
`composite` every child c_i comes with one parent p: a latent reads c_i alone, and writes p + c_i.
"""

import pytest
import torch
from torch.nn.functional import normalize

from sae_cli.comparison.arithmetic import arithmetic
from sae_cli.config.schema import OrthogonalityConfig
from sae_cli.dictionary.artifact import SAE
from sae_cli.losses.directions import Directions
from sae_cli.losses.orthogonality import ORTHOGONALITY

N = 8
EYE = torch.eye(N + 1)
PARENT, CHILDREN = EYE[N], EYE[:N]


def built(W_enc_FD: torch.Tensor, W_dec_FD: torch.Tensor) -> SAE:
    return SAE("relu", W_enc_FD.T.clone(), torch.zeros(N), W_dec_FD, torch.zeros(N + 1))


EXCLUSIVE = built(2 * CHILDREN - CHILDREN.sum(0), CHILDREN)
COMPOSITE = built(CHILDREN, CHILDREN + PARENT)
DATA = {"exclusive": (EXCLUSIVE, CHILDREN), "composite": (COMPOSITE, CHILDREN + PARENT)}


def largest_cosine(W_FD: torch.Tensor) -> float:
    unit_FD = normalize(W_FD, dim=1)
    return float((unit_FD @ unit_FD.T - 2 * torch.eye(len(W_FD))).max())


@pytest.mark.parametrize("name", DATA)
def test_both_reconstruct_with_one_latent_per_row(name):
    sae, x = DATA[name]
    acts = sae.encode(x)
    assert ((acts != 0).sum(1) == 1).all()
    assert torch.allclose(sae.decode(acts), x)


def test_cosines_of_the_encoder_point_the_wrong_way():
    assert largest_cosine(EXCLUSIVE.W_enc_DF.T) == pytest.approx((N - 4) / N)
    assert largest_cosine(COMPOSITE.W_enc_DF.T) == 0
    assert largest_cosine(EXCLUSIVE.W_dec_FD) == 0
    assert largest_cosine(COMPOSITE.W_dec_FD) == pytest.approx(1 / 2)


@pytest.mark.parametrize("kind", ["all_pairs", "nearest", "chunked"])
def test_penalties_on_the_decoder_separate_them_and_on_the_encoder_would_punish_the_wrong_one(kind):
    penalty, settings = ORTHOGONALITY[kind], OrthogonalityConfig(kind=kind, weight=1.0)
    assert penalty is not None
    assert penalty(Directions(EXCLUSIVE.W_dec_FD), settings).item() == 0
    assert penalty(Directions(COMPOSITE.W_dec_FD), settings).item() == pytest.approx(1 / 4)
    assert penalty(Directions(EXCLUSIVE.W_enc_DF.T), settings).item() == pytest.approx(((N - 4) / N) ** 2)
    assert penalty(Directions(COMPOSITE.W_enc_DF.T), settings).item() == 0


def test_the_arithmetic_test_names_the_parts_of_the_composites_only():
    parts, ids = torch.cat([CHILDREN, PARENT[None]]), list(range(N))
    rows = {name: arithmetic(sae.W_dec_FD, parts, ids, list(range(N + 1)), seed=0) for name, (sae, _) in DATA.items()}
    assert rows["exclusive"]["rows"]["measured"]["composite"] == 0
    assert rows["composite"]["rows"]["measured"]["composite"] == 1
    for one in rows["composite"]["examples"]:
        assert {term["id"] for term in one["terms"]} == {one["id"], N}
