"""Orthogonality penalties against naive formulas, and their gradients."""

import pytest
import torch
from torch.nn.functional import normalize

from sae_cli.config.schema import OrthogonalityConfig
from sae_cli.losses.directions import Directions
from sae_cli.losses.orthogonality import ORTHOGONALITY
from sae_cli.losses.phi import PHI
from sae_cli.losses.search import nearest_cosines

PENALTIES = [name for name, function in ORTHOGONALITY.items() if function]


def settings(**keys):
    defaults = {"kind": "all_pairs", "tile": 5, "threshold": 0.1, "exponent": 3.0}
    return OrthogonalityConfig(**{**defaults, **keys})


def directions(K=2, F=13, D=6, seed=0):
    return torch.randn(K, F, D, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def omega(name, W_KFD, keys, seed=0):
    return torch.stack([ORTHOGONALITY[name](Directions(W, seed), keys) for W in W_KFD])


def cosines(W_FD, signed):
    unit = normalize(W_FD, dim=-1)
    c = unit @ unit.T
    return c.clamp(min=0) if signed else c.abs()


@pytest.mark.parametrize("phi", PHI)
@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("tile", [1, 5, 13, 100])
def test_tiled_all_pairs_equals_the_naive_mean(phi, signed, tile):
    W = directions()
    keys = settings(phi=phi, signed=signed, tile=tile)
    upper = torch.triu_indices(13, 13, 1)
    expected = [PHI[phi](cosines(w, signed)[upper[0], upper[1]], keys).mean() for w in W]
    torch.testing.assert_close(omega("all_pairs", W, keys, 0), torch.stack(expected))


@pytest.mark.parametrize("phi", PHI)
@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("tile", [1, 5, 100])
def test_nearest_equals_the_naive_maximum(phi, signed, tile):
    W = directions()
    keys = settings(phi=phi, signed=signed, tile=tile)
    expected = [PHI[phi](cosines(w, signed).fill_diagonal_(0).amax(1), keys).mean() for w in W]
    torch.testing.assert_close(omega("nearest", W, keys, 0), torch.stack(expected))


def test_chunked_is_nearest_inside_the_drawn_parts():
    W = directions(F=14)
    keys = settings(chunk=4, phi="square")
    order = torch.randperm(14, generator=torch.Generator().manual_seed(3))
    parts = order[:12].view(4, 3)
    expected = torch.stack([omega("nearest", W[:, part], keys, 0) for part in parts]).mean(0)
    assert torch.equal(omega("chunked", W, keys, 3), expected)
    assert not torch.equal(omega("chunked", W, keys, 4), expected)


def test_chunked_with_one_part_is_nearest():
    W = directions()
    assert torch.equal(omega("chunked", W, settings(), 0), omega("nearest", W, settings(), 0))


@pytest.mark.parametrize("name", PENALTIES)
@pytest.mark.parametrize("phi", PHI)
@pytest.mark.parametrize("signed", [True, False])
def test_gradients_pass_gradcheck(name, phi, signed):
    W = directions(K=2, F=7, D=4).requires_grad_()
    keys = settings(phi=phi, signed=signed, tile=3, chunk=3)
    assert torch.autograd.gradcheck(lambda w: omega(name, w, keys, 1), (W,))


@pytest.mark.parametrize("name", PENALTIES)
@pytest.mark.parametrize("phi", sorted(PHI.keys() - {"logistic"}))
def test_penalties_vanish_on_orthonormal_rows(name, phi):
    W = torch.linalg.qr(directions(K=1, F=8, D=8)[0]).Q.unsqueeze(0)
    assert omega(name, W, settings(phi=phi, chunk=3), 0).item() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("signed", [True, False])
def test_ties_share_the_gradient(signed):
    """Direction 0 has two mirror-image nearest neighbours: its gradient has no sideways component."""
    W = torch.tensor([[[1.0, 0.0], [0.8, 0.6], [0.8, -0.6]]], dtype=torch.float64, requires_grad=True)
    omega("nearest", W, settings(signed=signed), 0).sum().backward()
    assert W.grad[0, 0, 1].item() == pytest.approx(0, abs=1e-12)
    torch.testing.assert_close(W.grad[0, 1, 0], W.grad[0, 2, 0])
    assert W.grad[0, 1].abs().sum() > 0


def test_antipodes_are_free_only_when_signed():
    W = torch.tensor([[[1.0, 0.0], [-1.0, 0.0]]])
    assert omega("nearest", W, settings(signed=True), 0).item() == 0
    assert omega("nearest", W, settings(signed=False), 0).item() == pytest.approx(1)


def test_low_precision_search_still_finds_the_nearest_cosine():
    W = directions(K=1, F=200, D=32)[0].float()
    with torch.autocast("cpu", torch.bfloat16):
        low = nearest_cosines(normalize(W, dim=-1), settings())
    exact = cosines(W.double(), True).fill_diagonal_(0).amax(1)
    torch.testing.assert_close(low.double(), exact, rtol=0, atol=2**-8)


@pytest.mark.parametrize("name", PENALTIES)
def test_no_square_matrix_is_allocated(name):
    """The largest tensor that a penalty makes holds at most tile * F numbers (or 2 F D for gathered neighbours)."""
    from torch.utils._python_dispatch import TorchDispatchMode

    largest = 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            nonlocal largest
            out = function(*args, **(kwargs or {}))
            for tensor in out if isinstance(out, tuple) else (out,):
                if isinstance(tensor, torch.Tensor):
                    largest = max(largest, tensor.numel())
            return out

    F, D, tile = 600, 4, 16
    W = directions(K=1, F=F, D=D).requires_grad_()
    with Watch():
        omega(name, W, settings(tile=tile, chunk=F), 0).sum().backward()
    assert tile * F <= largest <= 2 * F * D + tile * F
