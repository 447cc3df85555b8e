"""Values are judged alone and together; lists of allowed values equal the registries."""

import pytest

from sae_cli.config.check import ALLOWED, RANGES, check
from sae_cli.config.combinations import COUNTED, FIXED_GATE, SHARDABLE, WIDE_GRADIENT
from sae_cli.config.compose import compose
from sae_cli.config.keys import keys
from sae_cli.dictionary.nonlinearities import NONLINEARITIES
from sae_cli.dictionary.nonlinearities.threshold import TRec
from sae_cli.errors import UserError
from sae_cli.losses.orthogonality import ORTHOGONALITY
from sae_cli.losses.phi import PHI
from sae_cli.losses.sharded import SHARDED
from sae_cli.losses.sparsity import SPARSITY
from sae_cli.sources.registry import SOURCES


@pytest.mark.parametrize(
    ("key", "registry"),
    [
        ("sae.nonlinearity", NONLINEARITIES),
        ("sparsity.kind", SPARSITY),
        ("orthogonality.kind", {"none", *ORTHOGONALITY}),
        ("orthogonality.phi", PHI),
        ("source.kind", SOURCES),
    ],
)
def test_allowed_values_are_the_registries(key: str, registry: set[str]) -> None:
    assert set(ALLOWED[key]) == set(registry)


def test_groups_of_nonlinearities_are_what_they_say_of_themselves() -> None:
    assert set(COUNTED) == {name for name, one in NONLINEARITIES.items() if one.sparse_by_itself}
    assert set(FIXED_GATE) == {name for name, one in NONLINEARITIES.items() if isinstance(one, TRec)}
    assert set(SHARDABLE) == set(SHARDED)
    settings = compose([]).sae
    assert set(WIDE_GRADIENT) == {name for name, one in NONLINEARITIES.items() if one.reach(settings) is None}


def test_every_number_has_a_range_and_every_name_is_a_key() -> None:
    ranged = [name for names in RANGES.values() for name in names.split()]
    numbers = ("int", "float", "float | None", "list[int]", "list[float]")
    assert sorted(ranged) == sorted(key.name for key in keys() if key.type in numbers)
    assert set(ALLOWED) <= {key.name for key in keys()}


def test_docstrings_name_every_allowed_value() -> None:
    texts = {key.name: key.text for key in keys()}
    assert [(key, value) for key, values in ALLOWED.items() for value in values if value not in texts[key]] == []


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["sae.nonlinearity=prolu_st"], "sae.nonlinearity=prolu_st is not one of .* Did you mean prolu_ste"),
        (["train.beta1=1"], r"train.beta1=1.0 is outside \[0, 1\)"),
        (["train.lr=nan"], "train.lr=nan is outside"),
        (["train.resample_at=[0.5,1]"], "train.resample_at"),
        (["seed=-1"], "seed=-1 is outside"),
        (["device=gpu"], "device=gpu is not one of"),
        (["name=../up"], "name='../up' is not a folder name"),
        (["source=language_model", "text.dataset=x"], "one of text.path and text.dataset"),
        (["source=vectors"], "source.path is empty"),
        (["cache.tokens=0"], "cache.tokens=0"),
        (["cache.hooks=[a]"], "cache.hooks"),
        (["cache.parts=2"], "cache.parts=2 has no use with source=three_features"),
        (["source=vectors", "source.path=x", "cache.parts=2", "cache.tokens=0"], "known number of rows.*cache.tokens"),
        (["source=vectors", "source.path=x", "cache.parts=9", "cache.tokens=8"], "parts=9 is above the 8 rows"),
        (["source=language_model", "cache.parts=4", "cache.tokens=381"], "parts=4 is above the 3 contexts"),
        (["source=language_model", "cache.parts=0"], r"cache.parts=0 is outside \[1"),
        (["sae.freeze_decoder=true", "train.resample_at=[0.5]"], r"train.resample_at=\[0.5\] moves directions"),
        (["sae.freeze_decoder=true", "sae.grow=[512,512]"], r"sae.grow=\[512, 512\] moves directions"),
        (
            ["sae.freeze_decoder=true", "orthogonality=chunked", "orthogonality.weight=0.1"],
            "orthogonality.weight=0.1 moves directions",
        ),
        (["source=features", "source.width=0"], "source.width above 0"),
        (["source=features", "source.orthogonal=true"], "source.features=256 <= source.width=64"),
        (["source=chanin", "source.width=3"], "source.features=4 <= source.width=3"),
        (["source=tree", "source.features=11"], "3 trees of depth 1 have 12 features, source.features=11"),
        (["source=tree", "source.child_probability=0.4"], "source.branching . source.child_probability = 1.2"),
        (["source=features", "source.trees=1"], "source.trees=1 is for source=chanin"),
        (["source=tms", "source.features=5"], "not a multiple of source.sets=2"),
        (["source=tms", "source.features=6"], "source.width=4 .polygons. or 6 .orthonormal."),
        (["source=tms", "source.l0=1"], "source.l0=1.0 does not go with source=tms"),
        (["source=sanity_variable", "source.probability_min=0"], "log_uniform needs source.probability_min"),
        (["source=features", "source.probability_min=0.5"], "probability_min=0.5 is above source.probability=0.2"),
        (["source=tree", "source.cooccurrence=0.5"], "source.cooccurrence=0.5 is for"),
        (["source=tree", "source.correlation=0.5"], "source.correlation=0.5 is for"),
        (["orthogonality.weight=0.25"], "add orthogonality=chunked"),
        (["orthogonality=nearest", "orthogonality.weight=-1"], "needs orthogonality.cap below 1"),
        (["orthogonality=gram", "orthogonality.weight=-1"], "orthogonality=gram knows no cap"),
        (["orthogonality=decomposable", "orthogonality.cap=0.5"], "orthogonality.cap=0.5"),
        (["orthogonality=rica", "orthogonality.rows=alive"], "orthogonality.rows=alive must be all"),
        (["orthogonality=unique_nearest", "sae.latents=4096"], "assign_limit=2048.*orthogonality.greedy=true"),
        (["orthogonality=neighbours", "sae.latents=8"], "orthogonality.neighbours=8 must be below sae.latents=8"),
        (["orthogonality=decomposable", "sae.latents=32"], "orthogonality.meta_k=4 is above the 2 latents"),
        (["orthogonality=chunked", "orthogonality.chunk=1"], r"orthogonality.chunk=1 is outside \[2, inf\)"),
        (["orthogonality=nearest", "sae.latents=1"], "sae.latents of at least 2"),
        (["train.parallel=latents", "sae.grow=[512,512]"], "set train.parallel=rows"),
        (["train.parallel=latents", "train.sparse=sparse"], "train.sparse=sparse does not go with"),
        (
            ["train.parallel=latents", "orthogonality=cells", "orthogonality.weight=0.1"],
            "orthogonality=cells needs all directions.* use nearest, neighbours, chunked",
        ),
        (["train.memory_bytes=9", "orthogonality=rica", "orthogonality.weight=0.1"], "set train.memory_bytes=0"),
        (["sae=topk", "sparsity=l1"], "topk fires sae.k latents.*weight=1.0 must be 0: add sparsity=none"),
        (["sae=batchtopk", "sparsity.weight=2"], "sparsity.weight=2.0 must be 0"),
        (["sparsity=none", "sparsity.weight=2"], "sparsity.weight=2.0 needs a penalty: add sparsity=l1"),
        (["sae=topk", "sae.latents=16"], "sae.k=32 is above sae.latents=16"),
        (["sae=topk", "sae.preact_weight=1"], "sae.preact_weight has no use .*use sae.auxk_weight"),
        (["sae=trec", "sparsity=l0"], "sae.nonlinearity=trec learns none"),
        (["sae=tlin", "sae.bias_init=-1"], "sae.bias_init=-1.0 has no effect.*set sae.theta"),
        (["sae=topk", "sparsity.target_l0=9"], "sparsity.target_l0=9.0: .* reaches it with sae.k"),
        (["sparsity.weight=0", "sparsity.target_l0=9"], "sparsity.weight=0 cannot be moved"),
        (["sparsity.target_l0=2000"], "sparsity.target_l0=2000.0 is above sae.latents=1024"),
        (["sae.alpha_b=0.5"], "sae.alpha_b=0.5 has no effect .*sae=prolu_mixed"),
        (["sae=prolu_ste", "sae.alpha_m=0.5"], "sae.alpha_m=0.5 has no effect"),
        (["sae.ste=exp"], "sae.ste=exp has no effect .*sae=prolu_ste"),
        (["sae=prolu_hybrid", "sae.alpha_m=0", "sae.alpha_b=0", "sae.ste=exp"], "sae.ste=exp has no effect"),
        (["sae=gated", "train.sparse=sparse"], "train.sparse=sparse: sae.nonlinearity=gated.* set it to auto"),
        (["sae.prefixes=[0.5]", "train.sparse=sparse"], "train.sparse=sparse"),
        (["sae.prefixes=[0.5,0.25]"], r"sae.prefixes=\[0.5, 0.25\] must increase"),
        (["train.tokens=100"], "train.batch=2048 is above train.tokens=100"),
        (["train.warmup=0.9"], "above train.decay_end=1"),
        (["sae.latents=9", "sae.grow=[4,4]"], r"sae.grow=\[4, 4\] adds up to 8, .*: set sae.latents=8"),
        (["sae.latents=4", "sae.grow=[4,0]"], r"sae.grow=\[4, 0\] is outside \[1"),
        (["sae.latents=8", "sae.grow=[4,4]", "sae.nonlinearity=topk"], "use sae.nonlinearity=batchtopk"),
        (["sae.latents=8", "sae.grow=[4,4]", "sae.prefixes=[0.5]"], "does not go with sae.prefixes"),
        (
            ["sae.latents=3", "sae.grow=[1,1,1]", "train.tokens=5000"],
            r"more stages than steps \(2\): raise train.tokens",
        ),
    ],
)
def test_bad_values_name_their_key(overrides: list[str], expected: str) -> None:
    with pytest.raises(UserError, match=expected):
        compose(["source=three_features", *overrides])


@pytest.mark.parametrize(
    "overrides",
    [
        ["sae=topk", "sparsity=l1", "sparsity.weight=0"],
        ["sparsity.weight=0"],
        ["sae=prolu_ste", "sae.ste=window"],
        ["sae=prolu_ste_b", "sae.ste=exp"],
        ["sae=relu", "sparsity=l0"],
        ["sae=gated", "sae.prefixes=[0.25,0.5]", "sparsity.target_l0=9"],
    ],
)
def test_combinations_that_mean_something_are_accepted(overrides: list[str]) -> None:
    compose(["source=three_features", *overrides])


def test_all_problems_come_in_one_error() -> None:
    config = compose(["source=three_features"])
    config.train.lr, config.train.batch, config.sae.latents = 0.0, 10**9, 0
    with pytest.raises(UserError) as caught:
        check(config)
    assert str(caught.value).count("; ") == 2


def test_the_edges_of_ranges_are_accepted() -> None:
    assert compose(
        ["source=three_features", "orthogonality=nearest", "orthogonality.weight=-1", "orthogonality.cap=0.9"]
    )
    greedy = ["orthogonality=unique_nearest", "sae.latents=4096", "orthogonality.greedy=true"]
    assert compose(["source=three_features", *greedy]).orthogonality.greedy
    values = ["train.warmup=0", "train.decay=1", "sparsity.weight=0", "orthogonality.threshold=-1", "device=cuda:1"]
    assert compose(["source=three_features", "name=a/b-c.d", *values]).train.decay == 1
