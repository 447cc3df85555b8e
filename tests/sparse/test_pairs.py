"""Listed pairs and the largest of a tile against written-out sums: torch's operators, compiled and Triton's kernels."""

from contextlib import contextmanager

import pytest
import torch
from torch.nn.functional import normalize

from sae_cli.sparse import pairs, triton_pairs
from sae_cli.sparse.compiled import library

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
PATHS = ["torch", "triton", *(["compiled"] if library() is not None else [])]
every_path = pytest.mark.parametrize("path", [*PATHS, pytest.param("cuda", marks=pytest.mark.gpu)])


@contextmanager
def taking(monkeypatch, path):
    """Take one of the paths whatever the device: Triton's kernels are interpreted where there is no CUDA."""
    if path != "cuda":
        monkeypatch.setattr(pairs, "compiled", lambda *tensors: library() if path == "compiled" else None)
        monkeypatch.setattr(pairs, "on_cuda", lambda *tensors: triton_pairs if path == "triton" else None)
    device = "cuda" if path == "cuda" else DEVICE if path == "triton" else "cpu"
    with torch.device(device):
        yield device


def drawn(M=40, D=70, N=13, C=3, dtype=torch.float32, seed=0):
    """Unit rows, N of them with C others each, none of which is listed twice, and a weight for each pair, some 0."""
    generator = torch.Generator().manual_seed(seed)
    U = normalize(torch.randn(M, D, generator=generator, device="cpu"), dim=1).to(dtype)
    rows = torch.randperm(M, generator=generator, device="cpu")[:N]
    steps = torch.rand(N, M - 1, generator=generator, device="cpu").argsort(1)[:, :C] + 1
    weights = torch.randn(N, C, generator=generator, device="cpu")
    weights[::2, 0] = 0
    place = torch.empty(0).device
    return [tensor.to(place) for tensor in (U, rows, (rows.unsqueeze(1) + steps) % M, weights)]


@every_path
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [{}, {"M": 2, "D": 3, "N": 1, "C": 1}, {"N": 0}, {"D": 1030, "C": 17}])
def test_dots_and_sums_of_listed_pairs(monkeypatch, path, dtype, shape):
    with taking(monkeypatch, path) as device, torch.autocast(device, torch.bfloat16):
        U, rows, others, weights = drawn(**shape, dtype=dtype)
        wide = U.float()
        expected = (wide[rows].unsqueeze(1) * wide[others]).sum(2)
        torch.testing.assert_close(pairs.dots(U, rows, others), expected, rtol=1e-5, atol=1e-6)
        A = torch.zeros(len(U), len(U)).index_put((rows.unsqueeze(1).expand_as(others), others), weights)
        before = torch.randn(wide.shape)
        found = before.clone()
        pairs.add_sums(found, U, rows, others, weights)
        expected = before.double() + (A + A.T).double() @ wide.double()  # which autocast leaves alone
        torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("path", ["torch", "compiled"] if library() is not None else ["torch"])
@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize(
    ("T", "S", "dtype"), [(5, 200, torch.float32), (70, 64, torch.bfloat16), (3, 2, torch.float32)]
)
def test_the_largest_of_rows_and_of_columns(monkeypatch, path, signed, T, S, dtype):
    with taking(monkeypatch, path):
        generator = torch.Generator().manual_seed(0)
        whole = torch.stack([torch.randperm(2 * S, generator=generator) for _ in range(T)]) - S  # no ties in a row
        whole = (whole / (2 * S)).to(dtype)
        rows, columns = torch.arange(T) + 1, torch.arange(2 * S)
        of_rows, of_columns = pairs.Largest.of_none(T, 2, whole), pairs.Largest.of_none(2 * S, 1, whole)
        for part in (slice(0, S), slice(S, None)):
            pairs.see(whole[:, part].clone(), rows, columns[part], signed, of_rows, of_columns.part(part))
        naive = (whole.float() if signed else whole.float().abs()).masked_fill(rows.unsqueeze(1) == columns, -2)
        assert torch.equal(of_rows.values_NC, naive.topk(2, dim=1).values)
        assert torch.equal(naive.gather(1, of_rows.indices_NC), of_rows.values_NC)
        assert torch.equal(of_columns.values_NC.squeeze(1), naive.amax(0))
        at = (of_columns.indices_NC.squeeze(1) - 1).clamp(min=0)
        assert torch.equal(naive[at, columns], naive.amax(0))


@pytest.mark.parametrize("path", ["triton", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.bfloat16, marks=pytest.mark.gpu)])
def test_a_streamed_search_finds_the_two_nearest(monkeypatch, path, signed, dtype):
    with taking(monkeypatch, path):
        U = drawn(150, 70, dtype=dtype)[0]
        ids, rows = torch.randperm(500)[:150], torch.randperm(150)[:70]
        values, found = triton_pairs.nearest(U[rows], U, ids[rows], ids, signed)
        c = U[rows].double() @ U.double().T
        c = (c if signed else c.abs()).masked_fill(rows.unsqueeze(1) == torch.arange(150), -2)
        expected = c.topk(2, dim=1)
        torch.testing.assert_close(values.double(), expected.values, rtol=1e-4, atol=1e-5)
        assert torch.equal(found, ids[expected.indices])


def test_of_equal_numbers_the_first_is_streamed():
    """Rows of 300 copies, so that ties lie in one block and in several; each finds the first two others."""
    U = torch.eye(4, 16).repeat(75, 1).to(DEVICE)
    ids = torch.arange(300, device=DEVICE)
    values, found = triton_pairs.nearest(U, U, ids, ids, True)
    first = torch.where(ids < 4, ids + 4, ids % 4)
    second = torch.where(ids < 8, ids % 4 + 8, ids % 4 + 4)
    assert torch.equal(found, torch.stack([first, second], 1))
    assert torch.equal(values, torch.ones_like(values))


@pytest.mark.skipif(library() is None, reason="no compiler")
def test_threads_do_not_change_a_bit(monkeypatch):
    monkeypatch.setattr(pairs, "COMPILED_FROM", 0)
    U, rows, others, weights = drawn(300, 64, 200, 3)
    kept, found = torch.get_num_threads(), []
    for threads in (1, 3):
        torch.set_num_threads(threads)
        out, of_rows = torch.zeros_like(U), pairs.Largest.of_none(200, 3, U)
        of_columns = pairs.Largest.of_none(300, 3, U)
        pairs.add_sums(out, U, rows, others, weights)
        pairs.see((U[rows].double() @ U.T.double()).float(), rows, torch.arange(300), True, of_rows, of_columns)
        found.append([out, pairs.dots(U, rows, others), of_rows.indices_NC, of_columns.indices_NC])
    torch.set_num_threads(kept)
    assert all(torch.equal(one, three) for one, three in zip(*found, strict=True))


def test_gradients_of_pair_dots():
    U, rows, others, _ = drawn(12, 5, 6, 2, torch.float64)
    U.requires_grad_()
    assert torch.autograd.gradcheck(lambda u: pairs.PairDots.apply(u, u.detach(), rows, others, None), (U,))


def test_pairs_put_off_add_up_to_the_same_gradient():
    """Two members; only the second one's pairs are put off, beside another use of its rows."""
    U, rows, others, weights = drawn(20, 8)
    W, target = torch.stack([U.flip(0), U]).requires_grad_(), torch.randn(2, 20, 8)

    def value(stack, source, later):
        return (stack * target).sum() + (pairs.PairDots.apply(source, U, rows, others, later) * weights).sum()

    (expected,) = torch.autograd.grad(value(W, W[1], None), W)
    put_off = []
    tapped = pairs.AddLater.apply(W, put_off)
    (found,) = torch.autograd.grad(value(tapped, tapped, lambda *given: put_off.append((1, given))), W)
    assert len(put_off) == 1
    torch.testing.assert_close(found, expected)
