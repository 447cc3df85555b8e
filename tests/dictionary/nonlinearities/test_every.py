"""Every nonlinearity against a written-out forward and a backward derived by hand."""

import pytest
import torch

from sae_cli.config.schema import SAEConfig
from sae_cli.dictionary.nonlinearities import NONLINEARITIES
from tests.dictionary.nonlinearities.inputs import inputs, latents, parameters

ALPHA = {"alpha_m": 0.3, "alpha_b": 0.6}
BANDWIDTH = 0.7
SETTINGS = {"prolu_mixed": ALPHA, "prolu_hybrid": ALPHA, "jumprelu": {"bandwidth": BANDWIDTH}}
BLEND = {"prolu_relu": (0, 0), "prolu_ste": (1, 1), "prolu_mixed": (0.3, 0.6), "prolu_hybrid": (0.3, 0.6)}
ORDINARY = ["relu", "trec", "tlin", "topk", "batchtopk", "gated"]
K = 4


def total(values):
    return values.sum(-2, keepdim=True)


def relu(m, P, g):
    gate = m + P["b_enc"] > 0
    return (m + P["b_enc"]) * gate, {"m": g * gate, "b_enc": total(g * gate)}


def prolu(alpha_m, alpha_b):
    def reference(m, P, g):
        gate = ((m > 0) & (m + P["b_enc"] > 0)).double()
        dm = (1 - alpha_m) * gate + alpha_m * (1 + m) * gate
        db = (1 - alpha_b) * gate + alpha_b * m * gate
        return m * gate, {"m": g * dm, "b_enc": total(g * db)}

    return reference


def hybrid(m, P, g):
    f_relu, relu_grads = relu(m, P, g)
    f_prolu, prolu_grads = prolu(*BLEND["prolu_hybrid"])(m, P, g)
    positive = P["b_enc"] > 0
    grads = {key: torch.where(positive, relu_grads[key], prolu_grads[key]) for key in relu_grads}
    return torch.where(positive, f_relu, f_prolu), grads


def at_threshold(size):
    def reference(m, P, g):
        gate = size(m) > P["threshold"]
        return m * gate, {"m": g * gate}

    return reference


def jumprelu(m, P, g):
    z, theta = m + P["b_enc"], P["log_threshold"].exp()
    gate, near = z > theta, (z - theta).abs() < BANDWIDTH / 2
    dtheta = total(-theta / BANDWIDTH * near * g)
    return z * gate, {"m": g * gate, "b_enc": total(g * gate), "log_threshold": dtheta * theta}


def largest(groups):
    def reference(m, P, g):
        z = (m + P["b_enc"]).clamp(min=0)
        values = z.flatten(-2) if groups == "batch" else z
        kept = K * m.shape[-2] if groups == "batch" else K
        smallest = values.sort(-1, descending=True).values[..., kept - 1].view(len(m), -1, 1)
        gate = (z >= smallest) & (z > 0)
        return z * gate, {"m": g * gate, "b_enc": total(g * gate)}

    return reference


def gated(m, P, g):
    magnitude = P["r_mag"].exp() * m + P["b_mag"]
    gate = (m + P["b_enc"] > 0) & (magnitude > 0)
    scaled = g * gate * P["r_mag"].exp()
    return magnitude * gate, {"m": scaled, "r_mag": total(scaled * m), "b_mag": total(g * gate)}


REFERENCES = {
    "relu": relu,
    "prolu_relu": prolu(0, 0),
    "prolu_ste": prolu(1, 1),
    "prolu_mixed": prolu(*BLEND["prolu_mixed"]),
    "prolu_hybrid": hybrid,
    "trec": at_threshold(lambda m: m),
    "tlin": at_threshold(torch.abs),
    "jumprelu": jumprelu,
    "topk": largest("row"),
    "batchtopk": largest("batch"),
    "gated": gated,
}


def test_every_nonlinearity_has_a_reference():
    assert REFERENCES.keys() == NONLINEARITIES.keys()


@pytest.mark.parametrize("name", REFERENCES)
def test_forward_and_backward_equal_the_formulas(name):
    m, b, g = inputs()
    P = parameters(name, b)
    expected, grads = REFERENCES[name](m, P, g)
    assert 0 < (expected != 0).double().mean() < 1
    leaves = {"m": m, **P}
    for tensor in leaves.values():
        tensor.requires_grad_()
    f = latents(name, m, P, **SETTINGS.get(name, {}))
    f.backward(g)
    torch.testing.assert_close(f, expected, rtol=0, atol=1e-12)
    for key, tensor in leaves.items():
        if key in grads:
            torch.testing.assert_close(tensor.grad, grads[key].detach(), rtol=0, atol=1e-9)
        else:
            assert tensor.grad is None or not tensor.grad.any(), key


@pytest.mark.parametrize("name", ORDINARY)
def test_ordinary_gradients_pass_gradcheck(name):
    m, b, _ = inputs()
    P = parameters(name, b[:1])
    m = m[:1, :5].clone().requires_grad_()
    varied = [key for key in P if key not in NONLINEARITIES[name].buffers and (name, key) != ("gated", "b_enc")]

    def f(m, *values):
        return latents(name, m, P | dict(zip(varied, values, strict=True)))

    assert torch.autograd.gradcheck(f, (m, *(P[key].requires_grad_() for key in varied)))


@pytest.mark.parametrize("name", [name for name in REFERENCES if name not in ("topk", "batchtopk")])
def test_latents_fire_where_the_margin_is_positive(name):
    m, b, _ = inputs()
    P = parameters(name, b)
    f = latents(name, m, P)
    opened = NONLINEARITIES[name].margin(m, P) > 0
    if name == "gated":  # its magnitude may be 0 behind an open gate
        assert (opened | (f == 0)).all()
        opened &= P["r_mag"].exp() * m + P["b_mag"] > 0
    assert torch.equal(f != 0, opened)


@pytest.mark.parametrize("name", NONLINEARITIES)
def test_what_a_penalty_sums_is_not_negative_and_covers_what_fires(name):
    m, b, _ = inputs()
    P = parameters(name, b)
    nonlinearity, f = NONLINEARITIES[name], latents(name, m, P)
    values = nonlinearity.penalised(m, f, P)
    assert (values >= 0).all()
    assert (values[f != 0] > 0).all()
    assert bool((f < 0).any()) == nonlinearity.negative
    if name != "gated":
        assert torch.equal(values, f.abs())


@pytest.mark.parametrize("name", NONLINEARITIES)
def test_low_precision_keeps_its_format_and_gives_parameters_fp32_gradients(name):
    m, b, g = inputs(torch.float32)
    P = {key: tensor.requires_grad_() for key, tensor in parameters(name, b).items()}
    f = latents(name, m.bfloat16().requires_grad_(), P)
    assert f.dtype == torch.bfloat16
    f.backward(g.bfloat16())
    assert {tensor.grad.dtype for tensor in P.values() if tensor.grad is not None} <= {torch.float32}
    exact = latents(name, m, P)
    assert ((f != 0) == (exact != 0)).double().mean() > 0.97  # values within a rounding of a threshold may differ
    both = (f != 0) & (exact != 0)
    torch.testing.assert_close(f.float()[both], exact[both], rtol=0.03, atol=0.03)


@pytest.mark.parametrize("name", ["relu", "prolu_relu", "prolu_ste", "jumprelu", "topk", "batchtopk"])
def test_bias_gradient_is_summed_in_fp32_under_bf16(name):
    b = torch.full((1, 1, 1), 0.5, requires_grad=True)
    P = {"b_enc": b, "log_threshold": torch.zeros(1, 1, 1)}
    m = torch.ones(1, 4096, 1, dtype=torch.bfloat16)
    latents(name, m, P, ks=(1,)).sum().backward()
    assert b.grad.dtype == torch.float32
    assert b.grad.item() == pytest.approx(4096, rel=0.01)


@pytest.mark.parametrize("name", NONLINEARITIES)
def test_start_gives_every_parameter_a_value(name):
    nonlinearity = NONLINEARITIES[name]
    started = nonlinearity.start(SAEConfig(nonlinearity=name, bias_init=-0.2, theta=0.3))
    assert set(started) == {*nonlinearity.learned, *nonlinearity.buffers}
    assert set(nonlinearity.gates) <= {"b_enc", *nonlinearity.learned}
