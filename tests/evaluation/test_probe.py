"""Logistic probes against scipy, latents chosen by mean difference, and the control of matched density."""

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch import Tensor

from sae_cli.dictionary.artifact import SAE
from sae_cli.evaluation import probe
from tests.evaluation.saes import identity_sae, random_sae


def rows(count: int, width: int, seed: int = 0) -> Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


def reference(x_ND: np.ndarray, y_N: np.ndarray, ridge: float) -> tuple[np.ndarray, float]:
    mean, deviation = x_ND.mean(0), x_ND.std(0)
    z = (x_ND - mean) / deviation

    def loss(parameters: np.ndarray) -> float:
        margin = (z @ parameters[:-1] + parameters[-1]) * np.where(y_N, 1, -1)
        errors = np.logaddexp(0, -margin)
        return (errors[y_N].mean() + errors[~y_N].mean()) / 2 + ridge / 2 * (parameters[:-1] ** 2).sum()

    best = minimize(loss, np.zeros(z.shape[1] + 1), method="BFGS", options={"gtol": 1e-8}).x
    w = best[:-1] / deviation
    return w, best[-1] - w @ mean


@pytest.mark.parametrize("ridge", [1e-3, 0.1])
def test_fit_is_the_balanced_ridge_logistic_regression(ridge: float) -> None:
    x_ND = rows(60, 3) * torch.tensor([1.0, 10.0, 0.1]) + torch.tensor([5.0, 0.0, -2.0])
    noise_2N = rows(2, 60, 1)
    y_2N = torch.stack([x_ND[:, 0] - 5 + noise_2N[0] > 1, x_ND[:, 1] / 10 + noise_2N[1] > 0])
    w_2D, c_2 = probe.fit(x_ND[None], y_2N, ridge)
    for w_D, c, y_N in zip(w_2D, c_2, y_2N, strict=True):
        expected_w, expected_c = reference(x_ND.double().numpy(), y_N.numpy(), ridge)
        assert w_D.numpy() == pytest.approx(expected_w, rel=1e-3, abs=1e-4)
        assert float(c) == pytest.approx(expected_c, rel=1e-3, abs=1e-3)
    own_w, own_c = probe.fit(x_ND.expand(2, -1, -1), y_2N, ridge)
    torch.testing.assert_close(own_w, w_2D)
    torch.testing.assert_close(own_c, c_2)


def test_constant_inputs_get_no_weight_and_one_class_is_no_error() -> None:
    x_ND = torch.cat([rows(30, 2), torch.full((30, 1), 0.1)], dim=1)
    w_2D, c_2 = probe.fit(x_ND[None], torch.stack([x_ND[:, 0] > 0, torch.zeros(30, dtype=torch.bool)]))
    assert w_2D[0, 2].abs() < 1e-9
    assert w_2D.isfinite().all()
    assert c_2.isfinite().all()
    assert (probe.logits(x_ND[None], w_2D, c_2)[1] < 0).all()


def test_f1_counts() -> None:
    y = torch.tensor([[1, 1, 0, 0], [0, 0, 0, 0]], dtype=torch.bool)
    predicted = torch.tensor([[1, 0, 1, 0], [0, 0, 0, 0]], dtype=torch.bool)
    assert probe.f1(predicted, y).tolist() == [0.5, 0]


def test_a_dense_probe_takes_the_ridge_that_generalises(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "RIDGES", (1e-6, 1.0))
    for count, ridge, noise in ((90, 1.0, 4), (600, 1e-6, 0)):  # few rows of weak signals, many of clear ones
        x_ND = rows(count, 40)
        y_PN = (rows(20, 40, 1) @ x_ND.T + noise * rows(20, count, 2)) > 0
        torch.testing.assert_close(probe.fit_dense(x_ND, y_PN), probe.fit(x_ND[None], y_PN, ridge))


def test_shuffled_labels_are_chance() -> None:
    x_ND = rows(3000, 5)
    y_1N = (x_ND[:, 0] > 0)[None]
    train, test = slice(0, 2000), slice(2000, None)
    for labels_1N, least, most in ((y_1N[:, train], 0.97, 1), (probe.shuffled(y_1N[:, train]), 0.3, 0.7)):
        said_1N = probe.logits(x_ND[None, test], *probe.fit_dense(x_ND[train], labels_1N)) > 0
        assert least <= float((said_1N == y_1N[:, test]).double().mean()) <= most
    assert torch.equal(probe.shuffled(y_1N), probe.shuffled(y_1N))


def test_differences_are_standardised_and_do_not_depend_on_the_pieces() -> None:
    sae, x_ND = random_sae(4, 9, torch.float32), rows(50, 4)
    y_2N = torch.stack([x_ND[:, 0] > 0, x_ND[:, 1] > 1])
    acts_NF = sae.encode(x_ND)
    expected = torch.stack([acts_NF[y].mean(0) - acts_NF[~y].mean(0) for y in y_2N]) / acts_NF.std(0, correction=0)
    found = probe.differences(sae, x_ND, y_2N)
    torch.testing.assert_close(found, expected.nan_to_num().double(), rtol=1e-4, atol=1e-5)
    few = 7 * (24 * 9 + 64 * 4)  # seven rows
    torch.testing.assert_close(probe.differences(sae, x_ND, y_2N, few), found)


def test_probes_of_latents_find_the_one_that_knows() -> None:
    x_ND = rows(400, 6)
    held_N = torch.arange(400) % 4 == 0
    y_1N = (x_ND[:, 2] > 0)[None]
    logit_PKN, best_PS = probe.probe_latents(identity_sae(6), x_ND, held_N, y_1N[:, ~held_N], (1, 3), signed=True)
    assert best_PS[0, 0] == 2
    assert logit_PKN.shape == (1, 2, 400)
    assert ((logit_PKN[0, :, held_N] > 0) == y_1N[:, held_N]).double().mean() > 0.95
    _, either_PS = probe.probe_latents(identity_sae(6), x_ND, held_N, y_1N[:, ~held_N], (2, 99), signed=False)
    assert set(either_PS[0, :2].tolist()) == {2, 8}  # relu(x_2) and relu(-x_2)
    assert either_PS.shape == (1, 12)


@pytest.mark.parametrize("input_norm", ["scalar", "row"])
def test_the_control_has_random_unit_directions_and_the_density_of_each_latent(input_norm: str) -> None:
    x_ND = rows(101, 5) + 3
    sae = random_sae(5, 40, torch.float32)
    sae.b_enc_F[0], sae.b_enc_F[1], sae.input_norm = -1e3, 1e3, input_norm
    control = probe.random_control(sae, x_ND, 24 * 101 * 7)
    fires_F = (sae.encode(x_ND) != 0).sum(0)
    assert {0, 101} < set(fires_F.tolist())
    assert torch.equal((control.encode(x_ND) != 0).sum(0), fires_F)
    assert torch.equal(control.W_enc_DF.T, control.W_dec_FD)
    torch.testing.assert_close(control.W_dec_FD.norm(dim=1), torch.ones(40))
    again = probe.random_control(SAE("relu", sae.W_enc_DF, sae.b_enc_F + 1, sae.W_dec_FD, sae.b_dec_D), x_ND)
    assert torch.equal(again.W_dec_FD, control.W_dec_FD)
