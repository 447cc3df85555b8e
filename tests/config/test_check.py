"""Values are judged alone and together; lists of allowed values equal the registries."""

import pytest

from sae_cli.config.check import ALLOWED, RANGES, check
from sae_cli.config.compose import compose
from sae_cli.config.keys import keys
from sae_cli.dictionary.nonlinearities import NONLINEARITIES
from sae_cli.errors import UserError
from sae_cli.losses.orthogonality import ORTHOGONALITY
from sae_cli.losses.phi import PHI
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


def test_every_number_has_a_range_and_every_name_is_a_key() -> None:
    ranged = [name for names in RANGES.values() for name in names.split()]
    assert sorted(ranged) == sorted(key.name for key in keys() if key.type in ("int", "float", "list[float]"))
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
        (["source=features", "source.width=0"], "source.width above 0"),
        (["source=features", "source.orthogonal=true"], "source.features=256 <= source.width=64"),
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
        (["train.tokens=100"], "train.batch=2048 is above train.tokens=100"),
        (["train.warmup=0.9"], "above 1 together"),
    ],
)
def test_bad_values_name_their_key(overrides: list[str], expected: str) -> None:
    with pytest.raises(UserError, match=expected):
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
