"""Triton's kernels, interpreted on the CPU: products over the entries of a stack, rows, Adam, and whole steps."""

import pytest
import torch

from sae_cli.sparse import triton_operators
from sae_cli.sparse.operators import Operators
from sae_cli.sparse.triton_operators import SHUT, Triton
from sae_cli.training import terms
from sae_cli.training.adam import StackAdam
from tests.sparse import triton_cases as cases


@pytest.mark.parametrize(
    ("K", "B", "F", "D", "dtype"),
    [
        (1, 4, 21, 19, torch.float32),
        (3, 6, 9, 5, torch.bfloat16),
    ],
)
def test_products_over_a_stacks_entries_equal_dense_products(K, B, F, D, dtype):
    cases.check_products(K, B, F, D, dtype)


def test_entries_of_rows_of_several_blocks_are_found():
    cases.check_found(1, 2, 2100, torch.bfloat16)


def test_a_latent_of_many_rows_is_summed_in_parts(monkeypatch):
    monkeypatch.setattr(triton_operators, "SPAN", 4)
    cases.check_products(2, 14, 5, 6, torch.float32)


@pytest.mark.parametrize(("ks", "F"), [([1], 5), ([4, 7, 2], 33), ([33], 33)])
def test_the_largest_of_each_row_are_found(ks, F):
    cases.check_largest(ks, 3, F, torch.float32)


def test_the_largest_of_rows_wider_than_a_block_are_found(monkeypatch):
    monkeypatch.setattr(triton_operators, "ROW", 16)
    cases.check_largest([9], 3, 40, torch.bfloat16)


def test_nothing_is_found_and_nothing_is_kept():
    operators = Triton()
    entries, m_N = operators.find(torch.zeros(2, 3, 7), torch.full((2, 7), -1.0), [0, 0], 10)
    assert (entries.sizes, len(m_N), entries.starts_R.tolist()) == ([0, 0], 0, [0] * 7)
    assert not operators.accumulate(entries, m_N, torch.ones(6, 3), True).any()
    entries, m_N = operators.find(torch.ones(1, 2, 3), torch.zeros(1, 3), [0], 6)
    assert operators.keep(entries, m_N, torch.tensor([True, False] * 3))[1].tolist() == [1, pytest.approx(SHUT)] * 3


def test_rows_of_parameters_equal_torchs(monkeypatch):
    grad, directions = torch.randn(2, 5, 19), torch.randn(2, 5, 19)
    directions[0, 1] = 0
    for name, values in (("project", (grad, directions)), ("unit", (directions,))):
        mine, expected = [v.clone() for v in values], [v.clone() for v in values]
        getattr(Triton(), name)(*mine)
        getattr(Operators(), name)(*expected)
        torch.testing.assert_close(mine[0], expected[0])
    with_gaps = torch.randn(5, 19, 2).permute(2, 0, 1)
    expected = with_gaps - (with_gaps * directions).sum(-1, keepdim=True) * directions
    Triton().project(with_gaps, directions)
    torch.testing.assert_close(with_gaps, expected)


def test_adam_over_a_stack_equals_torchs(monkeypatch):
    tensors = {"W_dec_KFD": torch.randn(3, 4, 19), "b_enc_KF": torch.randn(3, 1030)}
    tensors["W_dec_KFD"] /= tensors["W_dec_KFD"].norm(dim=2, keepdim=True)
    copies = {name: tensor.clone() for name, tensor in tensors.items()}
    by_torch = StackAdam(copies, (0.9, 0.999), "cpu")
    monkeypatch.setattr("sae_cli.training.adam.operators", lambda device, size: Triton())
    by_triton = StackAdam(tensors, (0.9, 0.999), "cpu")
    before = {name: tensor.clone() for name, tensor in tensors.items()}
    for step in range(3):
        gradients = {name: torch.randn(tensor.shape) for name, tensor in tensors.items()}
        frozen_K = torch.tensor([False, step == 1, True])
        gradients["b_enc_KF"][2] = torch.nan
        shrink_K = torch.tensor([1.0, 3.0, torch.nan])
        for one in (by_triton, by_torch):  # which divides the gradients in place
            one.step(slice(0, 3), gradients, [1e-2, 2e-2, 1.0], shrink_K, frozen_K, unit=True)
    for name, tensor in tensors.items():
        torch.testing.assert_close(tensor, copies[name], rtol=1e-5, atol=1e-6)
        assert torch.equal(tensor[2], before[name][2])
        for k in range(3):
            torch.testing.assert_close(by_triton.state(k)[name], by_torch.state(k)[name], rtol=1e-4, atol=1e-6)
    assert by_triton.steps_KT.tolist() == [[3, 3], [2, 2], [0, 0]]


@pytest.mark.parametrize(
    ("name", "K"),
    [
        *((name, 3) for name in cases.STEPS),
        *(pytest.param(name, 1, marks=pytest.mark.slow if name != "relu" else ()) for name in cases.STEPS),
    ],
)
def test_a_step_of_a_stack_equals_dense_steps(tmp_path, monkeypatch, name, K):
    words = cases.STEPS[name]
    batches = torch.randn(2, 6, 6, generator=torch.Generator().manual_seed(3))
    dense = cases.make_stepper(tmp_path, words, K, 6, 12, "cpu", "dense", 6)
    for step, x_BD in enumerate(batches):
        dense.step(step, x_BD)
    cases.through_triton(monkeypatch)
    sparse = cases.make_stepper(tmp_path, words, K, 6, 12, "cpu", "sparse", 6)
    found = []
    sparse_terms = terms.sparse_terms
    monkeypatch.setattr("sae_cli.training.loss.sparse_terms", lambda *given: found.append(1) or sparse_terms(*given))
    for step, x_BD in enumerate(batches):
        sparse.step(step, x_BD)
    assert len(found) == 2
    cases.assert_same_steps(sparse, dense, 2e-5)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy's, of what overflows
def test_a_member_that_is_not_finite_neither_decides_nor_learns(tmp_path, monkeypatch):
    cases.through_triton(monkeypatch)
    alone, stack = (cases.make_stepper(tmp_path, ("sae=relu",), K, 6, 10, "cpu", "auto", 6) for K in (1, 2))
    monkeypatch.setattr(Triton, "auto_from", 1)
    monkeypatch.setattr(Triton, "wide_share", 0.5)
    stack.stack.b_enc_KF[1] = 1e30  # all its latents fire
    paths, find = [], terms.find_entries
    monkeypatch.setattr("sae_cli.training.loss.find_entries", lambda *given: paths.append(find(*given)) or paths[-1])
    for step in range(2):
        x_BD = torch.randn(6, 6, generator=torch.Generator().manual_seed(step))
        for stepper in (alone, stack):
            stepper.step(step, x_BD)
    assert stack.frozen_K.tolist() == [False, True]
    assert [None if found is None else len(found[0].sizes) for found in paths] == [1, None, 1, 2]
    assert paths[3][0].sizes[1] == 0
    for name, tensor in alone.stack.state().items():
        torch.testing.assert_close(stack.stack.state()[name][:1], tensor, rtol=1e-4, atol=1e-5)
