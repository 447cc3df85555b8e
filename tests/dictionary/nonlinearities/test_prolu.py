"""ProLU's families of synthetic gradients, and what ties it to JumpReLU and ReLU."""

from functools import partial

import pytest
import torch

from sae_cli.config.check import ALLOWED
from sae_cli.config.compose import compose
from sae_cli.dictionary.nonlinearities.prolu import STE
from tests.dictionary.nonlinearities.inputs import inputs, latents

DERIVATIVES = {
    "step": lambda x: 1.0 if x > 0 else 0.0,
    "window": lambda x: 1.0 if 0 < x < 1 else 0.0,
    "clamp_0_1": lambda x: min(max(x, 0.0), 1.0),
    "clamp_1_1": lambda x: min(max(x, -1.0), 1.0),
    "one": lambda x: 1.0,
    "exp": lambda x: torch.tensor(x, dtype=torch.float64).exp().item(),
}


def gradients(name, m, b, g, **settings):
    m, b = m.clone().requires_grad_(), b.clone().requires_grad_()
    latents(name, m, {"b_enc": b}, **settings).backward(g)
    return m.grad, b.grad


def test_the_family_of_threshold_derivatives_is_complete():
    assert DERIVATIVES.keys() == STE.keys() == set(ALLOWED["sae.ste"])


@pytest.mark.parametrize("ste", DERIVATIVES)
@pytest.mark.parametrize(("name", "alpha_m", "alpha_b"), [("prolu_ste", 1, 1), ("prolu_mixed", 0.3, 0.6)])
def test_a_threshold_derivative_reaches_m_and_b_in_its_shares(ste, name, alpha_m, alpha_b):
    """f = m 1[m > 0] H(m + b) with H' = T': dm = gate + alpha_m s and db = (1 - alpha_b) gate + alpha_b s."""
    m, b, g = inputs()
    blend = {"alpha_m": alpha_m, "alpha_b": alpha_b} if name == "prolu_mixed" else {}
    dm, db = gradients(name, m, b, g, ste=ste, **blend)
    gate = ((m > 0) & (m + b > 0)).double()
    slope = torch.tensor([DERIVATIVES[ste](x) for x in (m + b).flatten().tolist()], dtype=m.dtype).view(m.shape)
    s = m.clamp(min=0) * slope
    torch.testing.assert_close(dm, g * (gate + alpha_m * s), rtol=0, atol=1e-9)
    expected = (g * ((1 - alpha_b) * gate + alpha_b * s)).sum(-2, keepdim=True)
    torch.testing.assert_close(db, expected, rtol=0, atol=1e-9)


def test_the_named_ablations_are_one_sided():
    """The post's STE on b alone keeps ReLU's dm; on m alone it keeps ReLU's db."""
    m, b, g = inputs()
    sides = {}
    for choice in ("prolu_relu", "prolu_ste", "prolu_ste_b", "prolu_ste_m"):
        sae = compose([f"sae={choice}", "source=three_features"]).sae
        sides[choice] = gradients(sae.nonlinearity, m, b, g, alpha_m=sae.alpha_m, alpha_b=sae.alpha_b)
    (relu_m, relu_b), (ste_m, ste_b) = sides["prolu_relu"], sides["prolu_ste"]
    assert not torch.allclose(relu_m, ste_m)
    assert not torch.allclose(relu_b, ste_b)
    torch.testing.assert_close(sides["prolu_ste_b"], (relu_m, ste_b))
    torch.testing.assert_close(sides["prolu_ste_m"], (ste_m, relu_b))


@pytest.mark.parametrize("name", ["prolu_relu", "prolu_ste", "prolu_mixed"])
def test_prolu_is_jumprelu_with_threshold_max_0_minus_b(name):
    m, b, _ = inputs(torch.float32)
    theta = (-b).clamp(min=0)
    assert torch.equal(latents(name, m, {"b_enc": b}), torch.where(m > theta, m, 0))


def test_scale_consistency_holds_for_prolu_and_fails_for_relu():
    """SAE(kv) = k SAE(v) for k > 1 where a latent is active, with a noise threshold for b < 0 (ProLU post)."""
    m = torch.linspace(0.1, 3, 30).reshape(1, 30, 1)
    P = {"b_enc": torch.full((1, 1, 1), -0.5)}
    prolu, relu = (partial(latents, name, P=P) for name in ("prolu_ste", "relu"))
    active = prolu(m) > 0
    assert torch.allclose(prolu(2 * m)[active], 2 * prolu(m)[active])
    assert not torch.allclose(relu(2 * m)[active], 2 * relu(m)[active])
    assert prolu(torch.full((1, 1, 1), 0.4)).item() == 0
