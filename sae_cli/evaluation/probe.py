"""Logistic probes of raw activations and of few latents, and the control that any probe of latents needs."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, normalize

from sae_cli.dictionary.artifact import SAE, row_scale
from sae_cli.evaluation.reconstruction import rows_within
from sae_cli.randomness import derive_seed

RIDGE = 1e-4
"""Weight of half the squared coefficients, of standardised inputs, in probes of few latents."""
RIDGES = (1e-3, 1e-2, 1e-1)
"""Those that a dense probe chooses from."""
ITERATIONS = 100
HELD = 3
"""One of so many words or documents is held out."""
MEMORY = 2**30
"""Bytes that latents and what is computed of them may take at a time, unless a caller says otherwise."""


def fit(x_PND: Tensor, y_PN: Tensor, ridge: float = RIDGE) -> tuple[Tensor, Tensor]:
    """Return coefficients (P, D) and intercepts (P,) of P logistic regressions, fp64, in units of x.

    x is (P, N, D), or (1, N, D) if all share it; y (P, N) is boolean. Each minimises the mean of its two classes' mean
    cross-entropies + ridge / 2 |w|^2 over inputs brought to mean 0 and deviation 1 (constant ones get 0), by
    full-batch L-BFGS from 0.
    """
    x_PND, y_PN = x_PND.double(), y_PN.double()
    mean_P1D, deviation_P1D = x_PND.mean(1, keepdim=True), x_PND.std(1, keepdim=True, correction=0)
    varies_P1D = deviation_P1D > 1e-9 * x_PND.abs().amax(1, keepdim=True)
    deviation_P1D = torch.where(varies_P1D, deviation_P1D, 1)
    z_PND = (x_PND - mean_P1D) / deviation_P1D
    weight_PN = class_weights(y_PN)
    w_PD = z_PND.new_zeros(len(y_PN), x_PND.shape[2], requires_grad=True)
    c_P1 = z_PND.new_zeros(len(y_PN), 1, requires_grad=True)
    parameters = [w_PD, c_P1]
    optimiser = torch.optim.LBFGS(
        parameters, max_iter=ITERATIONS, history_size=20, tolerance_change=0, line_search_fn="strong_wolfe"
    )

    def loss() -> Tensor:
        optimiser.zero_grad()
        logit_PN = logits(z_PND, w_PD, c_P1[:, 0])
        total = binary_cross_entropy_with_logits(logit_PN, y_PN, weight_PN, reduction="sum")
        total = total + ridge / 2 * w_PD.square().sum()
        total.backward()
        return total

    with torch.enable_grad():
        optimiser.step(loss)
    w_PD = w_PD.detach() / deviation_P1D.squeeze(1)
    return w_PD, c_P1.detach().squeeze(1) - (w_PD * mean_P1D.squeeze(1)).sum(1)


def class_weights(y_PN: Tensor) -> Tensor:
    """Return weights of rows with which each of the two classes weighs 1/2."""
    true_P1, rows = y_PN.sum(1, keepdim=True).double(), y_PN.shape[1]
    return torch.where(y_PN > 0, 0.5 / true_P1.clamp(min=1), 0.5 / (rows - true_P1).clamp(min=1))


def fit_dense(x_ND: Tensor, y_PN: Tensor) -> tuple[Tensor, Tensor]:
    """Return `fit` of x shared by all, with the ridge of RIDGES that has the best mean F1 on a third of the rows."""
    held_N = torch.arange(len(x_ND), device=x_ND.device) % HELD == 0

    def score(ridge: float) -> float:
        w_PD, c_P = fit(x_ND[None, ~held_N], y_PN[:, ~held_N], ridge)
        return float(f1(logits(x_ND[None, held_N], w_PD, c_P) > 0, y_PN[:, held_N]).mean())

    return fit(x_ND[None], y_PN, max(RIDGES, key=score))


def logits(x_PND: Tensor, w_PD: Tensor, c_P: Tensor) -> Tensor:
    """Return w x + c of the rows of each probe, (P, N); x is (1, N, D) if all share it."""
    x_PND = x_PND.double()
    product_PN = w_PD @ x_PND[0].T if len(x_PND) == 1 else (x_PND @ w_PD[:, :, None]).squeeze(2)
    return product_PN + c_P[:, None]


def shuffled(y_PN: Tensor) -> Tensor:
    """Return labels whose rows (N) are in a random but always the same order: what a probe reaches by chance."""
    generator = torch.Generator().manual_seed(derive_seed("permuted labels"))
    return y_PN[:, torch.randperm(y_PN.shape[1], generator=generator).to(y_PN.device)]


def f1(predicted_PN: Tensor, y_PN: Tensor) -> Tensor:
    """Return 2 TP / (2 TP + FP + FN) of each row, 0 where nothing is predicted or true."""
    hits_P = (predicted_PN & y_PN).sum(1).double()
    return 2 * hits_P / (predicted_PN.sum(1) + y_PN.sum(1)).clamp(min=1)


def latents(sae: SAE, x_ND: Tensor, memory_bytes: int) -> Iterator[tuple[slice, Tensor]]:
    """Yield pieces of the rows and their latents (B, F), few enough for memory."""
    size = rows_within(memory_bytes, *sae.W_dec_FD.shape)
    for start in range(0, len(x_ND), size):
        piece = slice(start, start + size)
        yield piece, sae.encode(x_ND[piece])


def differences(sae: SAE, x_ND: Tensor, y_PN: Tensor, memory_bytes: int = MEMORY) -> Tensor:
    """Return (P, F): each latent's mean where y holds less its mean elsewhere, over its standard deviation."""
    weight_PN = class_weights(y_PN) * torch.where(y_PN, 2, -2)
    away_PF = weight_PN.new_zeros(len(y_PN), len(sae.W_dec_FD))
    mean_F, square_F = weight_PN.new_zeros(2, len(sae.W_dec_FD))
    for piece, acts_BF in latents(sae, x_ND, memory_bytes):
        acts_BF = acts_BF.double()
        away_PF += weight_PN[:, piece] @ acts_BF
        mean_F += acts_BF.sum(0) / len(x_ND)
        square_F += acts_BF.square().sum(0) / len(x_ND)
    deviation_F = (square_F - mean_F.square()).clamp(min=0).sqrt()
    return torch.where(deviation_F > 0, away_PF / deviation_F, 0)


def probe_latents(
    sae: SAE, x_ND: Tensor, held_N: Tensor, y_PN: Tensor, sizes: Sequence[int], signed: bool, memory_bytes: int = MEMORY
) -> tuple[Tensor, Tensor]:
    """Return what probes of each size say of all rows, (P, K, N), and the latents (P, S) that they use, best first.

    y (P, n) labels the rows that are not held out; on these the best have the largest `differences` (signed or of
    either sign), and the probes are fitted. S is the largest size, F at most.
    """
    away_PF = differences(sae, x_ND[~held_N], y_PN, memory_bytes)
    best_PS = (away_PF if signed else away_PF.abs()).topk(min(max(sizes), len(sae.W_dec_FD))).indices
    parts = [acts_BF[:, best_PS.flatten()] for _, acts_BF in latents(sae, x_ND, memory_bytes)]
    acts_PNS = torch.cat(parts).unflatten(1, best_PS.shape).transpose(0, 1)
    used_KS = torch.arange(best_PS.shape[1]) < torch.tensor(sizes)[:, None]
    acts_QNS = (acts_PNS[:, None] * used_KS[:, None].to(x_ND.device)).flatten(0, 1)
    probes = fit(acts_QNS[:, ~held_N], y_PN.repeat_interleave(len(sizes), 0))
    return logits(acts_QNS, *probes).unflatten(0, (len(y_PN), len(sizes))), best_PS


def random_control(sae: SAE, x_ND: Tensor, memory_bytes: int = MEMORY) -> SAE:
    """Return a ReLU SAE of random unit directions whose every latent fires on as many of the rows as the SAE's.

    The directions depend on the shape only; biases lie half way between the pre-activations of two rows.
    """
    latent_count, width = sae.W_dec_FD.shape
    generator = torch.Generator().manual_seed(derive_seed("random directions", latent_count, width))
    W_FD = normalize(torch.randn(latent_count, width, generator=generator), dim=1).to(x_ND)
    fires_F = sum((acts_BF != 0).sum(0) for _, acts_BF in latents(sae, x_ND, memory_bytes))
    assert isinstance(fires_F, Tensor)
    centred_ND = (x_ND / row_scale(x_ND) if sae.input_norm == "row" else x_ND) - sae.b_dec_D
    size = max(1, memory_bytes // (24 * len(x_ND)))
    biases = []
    for part_BD, fires_B in zip(W_FD.split(size), fires_F.split(size), strict=True):
        pre_BN = (part_BD @ centred_ND.T).sort(dim=1, descending=True).values
        pre_BN = torch.cat([pre_BN[:, :1] + 1, pre_BN, pre_BN[:, -1:] - 1], dim=1)
        biases.append(-pre_BN.gather(1, torch.stack([fires_B, fires_B + 1], dim=1)).mean(1))
    return replace(sae, nonlinearity="relu", W_enc_DF=W_FD.T, b_enc_F=torch.cat(biases), W_dec_FD=W_FD, stored={}, k=0)
