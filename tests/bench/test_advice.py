"""What is said to limit a step, and what would help."""

from sae_cli.bench.advice import hints, limit

MACHINE = {"device": "x86_64 CPU", "fp32_flops": 1e11, "bf16_flops": 8e11, "threads": 2, "cores": 2}


def test_the_largest_part_limits_unless_all_together_are_small():
    assert limit({"products": 0.5, "bandwidth": 0.3, "data": 0.1, "dense_bound": 2}) == "products"
    assert limit({"products": 0.2, "bandwidth": 0.4, "data": 0.1, "dense_bound": 1}) == "bandwidth"
    assert limit({"products": 0.1, "bandwidth": 0.1, "data": 0.7, "dense_bound": 1}) == "data"
    assert limit({"products": 0.2, "bandwidth": 0.1, "data": 0.0, "dense_bound": 1}) == "small operations"


def test_hints_name_the_setting():
    row = {"precision": "fp32", "path": "dense", "limit": "bandwidth"}
    found = "\n".join(hints(MACHINE | {"threads": 1}, [row]))
    for word in ("train.batch", "train.precision=bf16", "train.sparse", "OMP_NUM_THREADS=2"):
        assert word in found
    assert "compiler" not in found
    assert len(hints(MACHINE, [{"precision": "bf16", "path": "compiled", "limit": "products"}])) == 1
