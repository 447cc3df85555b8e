"""Steps that are measured: how many latents fire, which path runs, what shares mean."""

import pytest
import torch

from sae_cli.bench.step import Size, bench_config, measure, shares, stepper

SIZE = Size(24, 96, 2)
WORDS = ["train.batch=64", "train.precision=fp32"]


@pytest.mark.parametrize("kind", ["relu", "prolu_ste", "jumprelu", "gated", "topk", "batchtopk"])
def test_l0_is_what_was_asked_for_and_stays(kind):
    row = measure(bench_config([*WORDS, f"sae={kind}"], SIZE.latents, 12), SIZE, "cpu", 12, seconds=0.01)
    assert row["l0"] == pytest.approx(12, rel=0.25)
    assert row["member_tokens_per_second"] == pytest.approx(2 * row["tokens_per_second"])
    assert row["tokens_per_second"] == pytest.approx(64 / (row["ms"] / 1000))


def test_an_override_of_k_wins():
    config = bench_config([*WORDS, "sae=topk", "sae.k=5"], SIZE.latents, 12)
    assert measure(config, SIZE, "cpu", 12, seconds=0.01)["l0"] == pytest.approx(5)


@pytest.mark.parametrize(("words", "path"), [(["train.sparse=dense"], "dense"), (["train.sparse=sparse"], "torch")])
def test_the_path_is_named(words, path):
    config = bench_config([*WORDS, *words], SIZE.latents, 4)
    assert measure(config, SIZE, "cpu", 4, seconds=0.01)["path"] == path


def test_steps_move_no_weight():
    config = bench_config(WORDS, SIZE.latents, 4)
    x_BD = torch.randn(64, SIZE.width)
    made = stepper(config, SIZE, "cpu", x_BD, 4)
    before = made.stack.W_enc_KDF.clone()
    for step in range(5):
        made.step(step, x_BD)
    torch.testing.assert_close(made.stack.W_enc_KDF, before, atol=1e-7, rtol=0)


def test_shares_are_least_times_over_the_time():
    row = {"batch": 8, "width": 4, "latents": 16, "members": 2, "l0": 2.0, "precision": "fp32", "path": "compiled"}
    found = shares({**row, "ms": 1.0}, {"fp32_flops": 1e7, "copy_bytes": 1e8}, {"read_bytes": 1e6})
    assert found["products"] == pytest.approx(2 * (2 * 8 * 4 * 16) / 1e7 / 1e-3)
    assert found["dense_bound"] == pytest.approx(5 * found["products"])
    assert found["bandwidth"] == pytest.approx(2 * (2 * 8 * 16 * 4 + 32 * (2 * 4 * 16 + 16 + 4)) / 1e8 / 1e-3)
    assert found["data"] == pytest.approx(2 * 8 * 4 / 1e6 / 1e-3)
