"""Directions that are sparse sums of others: how well a small meta-SAE over the directions reconstructs them.

After MetaSAEs (arXiv 2604.03436). The meta-SAE is a TopK SAE whose inputs are the unit directions. It is trained beside
the dictionary, one Adam step per call; its parameters and moments are the penalty's state.
"""

import torch
from torch import Tensor
from torch.nn.functional import normalize

from sae_cli.config.schema import OrthogonalityConfig
from sae_cli.losses.directions import Directions

PARAMETERS = ("W_enc", "b_enc", "W_dec", "b_dec")
BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8
"""Of its Adam."""


def decomposable(directions: Directions, settings: OrthogonalityConfig) -> Tensor:
    """mean_i exp(-||u_i - meta(u_i)||^2 / s^2) over penalised unit directions u_i, s = meta_scale; a scalar in [0, 1].

    The meta-SAE is fixed for this gradient and then takes its own step on mean ||u - meta(u)||^2 over all directions,
    frozen ones included. There is no phi. Cost M F_meta D, memory M F_meta with F_meta = meta_share * M.
    """
    state, unit_MD = directions.state, directions.unit_MD
    if not state:
        state |= start(unit_MD, settings, directions.seed)
    parameters = [state[name].detach().requires_grad_() for name in PARAMETERS]
    with torch.enable_grad():
        error_M = (unit_MD - reconstruct(settings.meta_k, unit_MD, *parameters)).to(unit_MD.dtype).square().sum(1)
        gradients = torch.autograd.grad(error_M.mean(), parameters, retain_graph=True)
    state |= after_step(state, gradients, settings.meta_lr)
    rows_N = directions.penalised_N
    return torch.exp(-error_M.index_select(0, rows_N) / settings.meta_scale**2).sum() / max(len(rows_N), 1)


def reconstruct(k: int, u_MD: Tensor, W_enc: Tensor, b_enc: Tensor, W_dec: Tensor, b_dec: Tensor) -> Tensor:
    """Return the meta-SAE's reconstruction (M, D) from the k largest positive of its latents."""
    acts = torch.relu((u_MD - b_dec) @ W_enc + b_enc)
    largest, places = acts.topk(k, dim=1)
    return torch.zeros_like(acts).scatter(1, places, largest) @ W_dec + b_dec


def start(unit_MD: Tensor, settings: OrthogonalityConfig, seed: int) -> dict[str, Tensor]:
    """Return a meta-SAE with random unit directions, its encoder their transpose, and zero moments."""
    M, D = unit_MD.shape
    generator = torch.Generator().manual_seed(seed)
    W_dec = normalize(torch.randn(meta_latents(M, settings), D, generator=generator), dim=1).to(unit_MD)
    parameters = (W_dec.T.contiguous(), W_dec.new_zeros(len(W_dec)), W_dec, W_dec.new_zeros(D))
    state = dict(zip(PARAMETERS, parameters, strict=True))
    moments = {f"{name}.{moment}": torch.zeros_like(value) for name, value in state.items() for moment in ("m", "v")}
    return state | moments | {"step": W_dec.new_zeros(())}


def meta_latents(count: int, settings: OrthogonalityConfig) -> int:
    """Return the meta-SAE's number of latents for `count` directions."""
    return max(1, round(settings.meta_share * count))


@torch.no_grad()
def after_step(state: dict[str, Tensor], gradients: tuple[Tensor, ...], lr: float) -> dict[str, Tensor]:
    """Return the state after one Adam step, in new tensors, with the meta-SAE's directions at norm 1."""
    step = state["step"] + 1
    after = {"step": step}
    for name, gradient in zip(PARAMETERS, gradients, strict=True):
        gradient = gradient.contiguous()  # a checkpoint forgets strides, and they decide rounding
        m = torch.lerp(gradient, state[f"{name}.m"], BETA1)
        v = torch.lerp(gradient.square(), state[f"{name}.v"], BETA2)
        moved = lr * m / (1 - BETA1**step) / ((v / (1 - BETA2**step)).sqrt() + EPSILON)
        after |= {name: state[name] - moved, f"{name}.m": m, f"{name}.v": v}
    return after | {"W_dec": normalize(after["W_dec"], dim=1)}
