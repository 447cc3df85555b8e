"""Nonlinearities against written-out references."""

from functools import partial

import pytest
import torch

from sae_cli.config.schema import SAEConfig
from sae_cli.dictionary.nonlinearities import NONLINEARITIES

PLAIN = ["relu", "prolu_relu", "prolu_ste"]


def latents(name, m, b):
    return NONLINEARITIES[name].latents(m, {"b_enc": b}, [SAEConfig(nonlinearity=name)] * len(m))


def inputs(dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    m = torch.randn(3, 40, 17, generator=generator, dtype=dtype)
    b = torch.randn(3, 1, 17, generator=generator, dtype=dtype)
    g = torch.randn(3, 40, 17, generator=generator, dtype=dtype)
    return m, b, g


def reference_forward(name, m, b):
    if name == "relu":
        return (m + b) * (m + b > 0)
    return m * ((m > 0) & (m + b > 0))


def reference_backward(name, m, b, g):
    if name == "relu":
        dm = g * (m + b > 0)
        return dm, dm.sum(-2, keepdim=True)
    gate = (m > 0) & (m + b > 0)
    if name == "prolu_relu":
        return g * gate, (g * gate).sum(-2, keepdim=True)
    return (1 + m) * g * gate, (m * g * gate).sum(-2, keepdim=True)


@pytest.mark.parametrize("name", PLAIN)
def test_forward_and_backward_equal_the_formulas(name):
    m, b, g = inputs()
    m.requires_grad_()
    b.requires_grad_()
    f = latents(name, m, b)
    f.backward(g)
    with torch.no_grad():
        torch.testing.assert_close(f, reference_forward(name, m, b), rtol=0, atol=1e-6)
        dm, db = reference_backward(name, m, b, g)
        torch.testing.assert_close(m.grad, dm, rtol=0, atol=1e-6)
        torch.testing.assert_close(b.grad, db, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["prolu_relu", "prolu_ste"])
def test_prolu_is_jumprelu_with_threshold_max_0_minus_b(name):
    m, b, _ = inputs(torch.float32)
    theta = (-b).clamp(min=0)
    assert torch.equal(latents(name, m, b), torch.where(m > theta, m, 0))


def test_relu_gradient_passes_gradcheck():
    m, b, _ = inputs()
    m, b = m[:1, :5].clone().requires_grad_(), b[:1].clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda m, b: latents("relu", m, b), (m, b))


@pytest.mark.parametrize("name", PLAIN)
def test_bias_gradient_is_summed_in_fp32_under_bf16(name):
    b = torch.full((1, 1, 1), 0.5, requires_grad=True)
    m = torch.ones(1, 4096, 1, dtype=torch.bfloat16)
    f = latents(name, m, b)
    assert f.dtype == torch.bfloat16
    f.sum().backward()
    assert b.grad.dtype == torch.float32
    assert b.grad.item() == pytest.approx(4096, rel=0.01)


def test_scale_consistency_holds_for_prolu_and_fails_for_relu():
    """SAE(kv) = k SAE(v) for k > 1 where a latent is active, with a noise threshold for b < 0 (ProLU post)."""
    m = torch.linspace(0.1, 3, 30).reshape(1, 30, 1)
    b = torch.full((1, 1, 1), -0.5)
    prolu, relu = (partial(latents, name) for name in ("prolu_ste", "relu"))
    active = prolu(m, b) > 0
    assert torch.allclose(prolu(2 * m, b)[active], 2 * prolu(m, b)[active])
    assert not torch.allclose(relu(2 * m, b)[active], 2 * relu(m, b)[active])
    assert prolu(torch.full((1, 1, 1), 0.4), b).item() == 0
