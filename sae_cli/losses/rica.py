"""Reconstruction ICA (Le et al. 2011): directions that reconstruct whitened inputs by themselves."""

import torch
from torch import Tensor

from sae_cli.config.schema import OrthogonalityConfig
from sae_cli.losses.directions import Directions

DECAY = 0.99
"""Decay per call of the running mean and covariance."""
SHRINKAGE = 0.1
"""Share of the mean variance that replaces as much of the covariance before it is inverted."""


def rica(directions: Directions, settings: OrthogonalityConfig) -> Tensor:
    """mean over B and D of (z - U^T U z)^2 with unit rows U, frozen ones included, and z the whitened batch; a scalar.

    For white z it is (||U U^T - I||_F^2 + D - M) / D: `gram` in another unit, about M^2 / D times larger, with the same
    degeneracy (every tight frame is optimal, a duplicated basis too). It has no phi. Cost B M D, and D^3 at a refresh.
    """
    assert directions.x_BD is not None, "rica needs the batch"
    state = directions.state
    with torch.no_grad(), torch.autocast(directions.x_BD.device.type, enabled=False):
        x_BD = directions.x_BD.to(directions.W_FD.dtype)
        due = directions.refresh_due(settings)
        mean_D = x_BD.mean(0)
        if "mean" in state:
            mean_D = torch.lerp(mean_D, state["mean"], DECAY)
        covariance_DD = (x_BD - mean_D).T @ (x_BD - mean_D) / len(x_BD)
        if "covariance" in state:
            covariance_DD = torch.lerp(covariance_DD, state["covariance"], DECAY)
        state |= {"mean": mean_D, "covariance": covariance_DD}
        if due:
            state["whitener"] = whitener(covariance_DD)
        z_BD = (x_BD - mean_D) @ state["whitener"]
    unit_MD = directions.unit_MD
    return (z_BD - (z_BD @ unit_MD.T) @ unit_MD).to(directions.W_FD.dtype).square().mean()


def whitener(covariance_DD: Tensor) -> Tensor:
    """Return S^(-1/2) of the covariance S, shrunk towards its mean variance."""
    mean_variance = covariance_DD.diagonal().mean()
    values_D, vectors_DD = torch.linalg.eigh(covariance_DD)
    shrunk_D = (1 - SHRINKAGE) * values_D.clamp(min=0) + SHRINKAGE * mean_variance
    return (vectors_DD / shrunk_D.sqrt()) @ vectors_DD.T
