"""Products over entries against the same by dense products, for torch's operators and for the compiled kernels."""

import pytest
import torch

from sae_cli.sparse.compiled import Compiled, library
from sae_cli.sparse.operators import Operators

COMPILED = library()
BOTH = [Operators(), *([] if COMPILED is None else [Compiled(COMPILED)])]
both = pytest.mark.parametrize("operators", BOTH, ids=lambda found: type(found).__name__)
SHAPES = [(1, 1, 1), (5, 7, 3), (33, 200, 20), (40, 64, 17), (3, 130, 513)]


def drawn(B, F, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    m_BF = torch.randn(B, F, generator=generator)
    m_BF[B // 3] = -9  # an empty row
    m_BF[:, F // 2] = -9  # a latent that never fires
    return m_BF.to(dtype), torch.randn(F, generator=generator) * 0.3 - 0.5


def find(operators, m_BF, offset_F, k, capacity):
    return operators.find(m_BF.unsqueeze(0), offset_F.unsqueeze(0), [k], capacity)


def dense(entries, values_N):
    f_BF = torch.zeros(entries.rows, entries.latents)
    return f_BF.index_put((entries.row_N, entries.columns_N.long()), values_N, accumulate=True)


@both
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("B", "F", "D"), SHAPES)
def test_products_over_entries_equal_dense_products(operators, B, F, D, dtype):
    m_BF, offset_F = drawn(B, F, dtype)
    entries, m_N = find(operators, m_BF, offset_F, 0, B * F)
    open_BF = m_BF.float() + offset_F > 0
    torch.testing.assert_close(dense(entries, m_N), torch.where(open_BF, m_BF.float(), 0.0))
    assert torch.equal(dense(entries, torch.ones_like(m_N)), open_BF.float())

    generator = torch.Generator().manual_seed(1)
    W_FD, x_BD = (torch.randn(n, D, generator=generator).to(dtype) for n in (F, B))
    b_D, f_N = torch.randn(D, generator=generator), torch.randn(len(m_N), generator=generator)
    f_BF = dense(entries, f_N)
    e_BD, squares_B, dots_N = operators.decode(entries, f_N, W_FD, b_D, x_BD.float())
    expected_BD = f_BF @ W_FD.float() + b_D - x_BD.float()
    assert e_BD.dtype == dtype
    torch.testing.assert_close(e_BD.float(), expected_BD, rtol=1e-4 if dtype == torch.float32 else 2**-8, atol=1e-4)
    torch.testing.assert_close(squares_B, expected_BD.square().sum(1), rtol=1e-4, atol=1e-4)
    products_BF = torch.where(open_BF, expected_BD @ W_FD.float().T, 0.0)
    torch.testing.assert_close(dense(entries, dots_N), products_BF, rtol=1e-4, atol=1e-3)
    sums_FD = f_BF.T @ x_BD.float()
    torch.testing.assert_close(operators.accumulate(entries, f_N, x_BD, False), sums_FD, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(operators.accumulate(entries, f_N, x_BD, True)[0], sums_FD.T, rtol=1e-4, atol=1e-4)


@both
def test_matrices_may_have_gaps(operators):
    m_BF, offset_F = drawn(64, 30)
    whole, part = (find(operators, m, offset_F, 0, 2000) for m in (m_BF.clone(), m_BF.T.contiguous().T))
    assert torch.equal(whole[1], part[1])
    W_FD, x_BD = torch.randn(6, 30).T, torch.randn(6, 64).T
    (entries, m_N), b_D = part, torch.randn(12)[::2]
    e_BD, *_ = operators.decode(entries, m_N.repeat_interleave(2)[::2], W_FD, b_D, x_BD)
    torch.testing.assert_close(e_BD, dense(entries, m_N) @ W_FD + b_D - x_BD, rtol=1e-4, atol=1e-4)
    sums_FD = operators.accumulate(entries, m_N, x_BD, False)
    torch.testing.assert_close(sums_FD, dense(entries, m_N).T @ x_BD, rtol=1e-4, atol=1e-4)


@both
@pytest.mark.parametrize("k", [1, 5, 64])
def test_the_largest_of_each_row_are_found(operators, k):
    m_BF, offset_F = drawn(50, 200, torch.bfloat16)
    entries, m_N = find(operators, m_BF, offset_F, k, 50 * 200)
    z_BF = (m_BF.float() + offset_F).relu()
    smallest_B1 = z_BF.topk(k, dim=1).values[:, -1:]
    expected_BF = torch.where((z_BF >= smallest_B1) & (z_BF > 0), m_BF.float(), 0.0)
    torch.testing.assert_close(dense(entries, m_N), expected_BF)


@both
def test_of_equal_values_k_are_found(operators):
    entries, _ = find(operators, torch.ones(3, 90), torch.zeros(90), 7, 300)
    assert entries.starts_R.tolist() == [0, 7, 14, 21]
    assert all(len(set(row.tolist())) == 7 for row in entries.columns_N.view(3, 7))


@both
def test_nothing_and_too_much_are_found(operators):
    nothing, m_N = find(operators, torch.zeros(4, 70), torch.full((70,), -1.0), 0, 10)
    assert (len(m_N), nothing.starts_R.tolist()) == (0, [0] * 5)
    assert not operators.accumulate(nothing, m_N, torch.ones(4, 3), False).any()
    assert find(operators, torch.ones(4, 70), torch.zeros(70), 0, 279) is None
    assert len(find(operators, torch.ones(4, 70), torch.zeros(70), 0, 280)[1]) == 280
    assert find(operators, torch.ones(4, 70), torch.zeros(70), 5, 19) is None


@both
def test_some_entries_are_kept(operators):
    m_BF, offset_F = drawn(20, 30)
    entries, m_N = find(operators, m_BF, offset_F, 0, 600)
    kept_N = m_N > 0.5
    few = entries.keep(kept_N)
    expected_BF = dense(entries, torch.where(kept_N, m_N, 0.0))
    torch.testing.assert_close(dense(few, m_N[kept_N]), expected_BF)
    torch.testing.assert_close(few.operators.accumulate(few, m_N[kept_N], torch.eye(20), False), expected_BF.T)


@both
def test_threads_do_not_change_results(operators):
    found = []
    threads = torch.get_num_threads()
    for count in (1, 3):
        torch.set_num_threads(count)
        entries, m_N = find(operators, *drawn(37, 500), 20, 37 * 500)
        e_BD, squares_B, dots_N = operators.decode(
            entries, m_N, torch.eye(500)[:, :90], torch.zeros(90), torch.ones(37, 90)
        )
        found.append(
            [entries.columns_N, m_N, e_BD, squares_B, dots_N, operators.accumulate(entries, dots_N, e_BD, True)]
        )
    torch.set_num_threads(threads)
    assert all(torch.equal(one, three) for one, three in zip(*found, strict=True))


def test_without_a_compiler_there_is_no_library(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for compiler in ("no-such-compiler", "false"):
        monkeypatch.setenv("CXX", compiler)
        assert library.__wrapped__() is None
    assert not list(tmp_path.iterdir())
