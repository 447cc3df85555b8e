"""Small direction sets and settings for the tests of orthogonality penalties."""

import torch
from torch import Tensor
from torch.nn.functional import normalize
from torch.utils._python_dispatch import TorchDispatchMode

from sae_cli.config.schema import OrthogonalityConfig
from sae_cli.losses.directions import Directions
from sae_cli.losses.orthogonality import ORTHOGONALITY


def settings(kind: str = "nearest", **keys) -> OrthogonalityConfig:
    """Return settings whose tile, parts and lists are small."""
    defaults = {"tile": 5, "threshold": 0.1, "exponent": 3.0, "chunk": 4, "neighbours": 3, "meta_share": 0.5}
    return OrthogonalityConfig(**{"kind": kind, "meta_k": 2, **defaults, **keys})


def random_rows(count: int, width: int = 6, seed: int = 0) -> Tensor:
    return torch.randn(count, width, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def omega(W_FD: Tensor, keys: OrthogonalityConfig, **parts) -> Tensor:
    """Return the penalty; `state` in parts is not changed."""
    parts["state"] = dict(parts.get("state", {}))
    return penalty(Directions(W_FD, **{"x_BD": random_rows(40, W_FD.shape[1], 9), **parts}), keys)


def penalty(directions: Directions, keys: OrthogonalityConfig) -> Tensor:
    """Return the penalty and let it change the state."""
    function = ORTHOGONALITY[keys.kind]
    assert function is not None
    return function(directions, keys)


def state_after_one_call(W_FD: Tensor, keys: OrthogonalityConfig, **parts) -> dict[str, Tensor]:
    directions = Directions(W_FD, **{"x_BD": random_rows(40, W_FD.shape[1], 9), **parts})
    penalty(directions, keys)
    return directions.state


def cosines(W_FD: Tensor, signed: bool = True) -> Tensor:
    """Return what is penalised of all cosines, the diagonal at -1."""
    unit = normalize(W_FD, dim=-1)
    c = unit @ unit.T
    return (c.clamp(min=0) if signed else c.abs()).masked_fill(torch.eye(len(c), dtype=torch.bool), -1)


class Watch(TorchDispatchMode):
    """Remembers the number of elements of the largest tensor made."""

    largest = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else (out,):
            if isinstance(tensor, Tensor):
                self.largest = max(self.largest, tensor.numel())
        return out
