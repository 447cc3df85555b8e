"""How many latents TopK and BatchTopK keep, and the threshold that BatchTopK learns."""

import pytest
import torch

from sae_cli.dictionary.nonlinearities import NONLINEARITIES
from sae_cli.dictionary.nonlinearities.topk import DECAY, SEARCHED, cut
from tests.dictionary.nonlinearities.inputs import inputs, latents


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_topk_keeps_each_member_s_k_per_row(dtype):
    m, _, _ = inputs(torch.float32)
    f = latents("topk", m.to(dtype), {"b_enc": torch.full((3, 1, 17), 9.0)}, ks=(1, 5, 30))
    assert [set(member.tolist()) for member in (f > 0).sum(-1)] == [{1}, {5}, {17}]


def test_batchtopk_keeps_each_member_s_k_per_row_on_average():
    m, _, _ = inputs(torch.float32)
    f = latents("batchtopk", m, {"b_enc": torch.full((3, 1, 17), 9.0)}, ks=(1, 5, 30))
    assert (f > 0).sum((-2, -1)).tolist() == [40, 200, 680]
    assert len(set((f[1] > 0).sum(-1).tolist())) > 1


@pytest.mark.parametrize("name", ["topk", "batchtopk"])
def test_negative_pre_activations_never_fire(name):
    m = -torch.rand(1, 6, 9) - 0.1
    m[0, 0, 0] = 1.0
    f = latents(name, m, {"b_enc": torch.zeros(1, 1, 9)}, ks=(3,))
    assert (f.sum().item(), (f != 0).sum().item()) == (1.0, 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["noise", "few_columns", "mostly_zero", "ties"])
def test_the_cut_is_the_exact_order_statistic(dtype, kind):
    """Above SEARCHED values it is guessed from a sample first; a guess that is wrong must not change it."""
    generator = torch.Generator().manual_seed(3)
    z = torch.randn(600, 610, generator=generator).to(dtype)  # 61 divides 610: the sample sees ten columns only
    assert z.numel() > SEARCHED
    if kind == "few_columns":
        z[:, ::61] += 100
    elif kind == "mostly_zero":
        z = (z - 3).relu()
    elif kind == "ties":
        z = z.round()
    for count in (1, 600, 5000, 600 * 610, 10**9):
        expected = z.flatten().sort(descending=True).values[min(count, z.numel()) - 1]
        assert cut(z, count) == expected


def test_the_threshold_is_the_running_mean_of_the_smallest_latent():
    nonlinearity = NONLINEARITIES["batchtopk"]
    P = {"threshold": torch.full((2, 1, 3), -1.0)}
    first = torch.tensor([[[0.0, 2.0, 3.0], [0.5, 0.0, 0.0]], [[0.0, 0.0, 0.0], [0.0, 0.0, 0.0]]])
    nonlinearity.observe(first, P)
    assert P["threshold"][:, 0].tolist() == [[0.5] * 3, [-1.0] * 3]  # the second member has seen nothing that fires
    nonlinearity.observe(first * 3, P)
    torch.testing.assert_close(P["threshold"][0, 0], torch.full((3,), DECAY * 0.5 + (1 - DECAY) * 1.5))


def test_an_artefact_keeps_what_reaches_the_threshold():
    m = torch.tensor([[0.2, 0.3, -0.4, 0.1]])
    P = {"b_enc": torch.tensor([0.0, 0.0, 1.0, 0.0]), "threshold": torch.full((4,), 0.3)}
    expected = torch.tensor([[0.0, 0.3, 0.6, 0.0]])
    torch.testing.assert_close(NONLINEARITIES["batchtopk"].infer(m, P, 1), expected)
