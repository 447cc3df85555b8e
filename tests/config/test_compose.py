"""Overrides become a typed Config, or one line that names everything that is wrong."""

import subprocess
import sys
from pathlib import Path

import pytest
from hydra.core.global_hydra import GlobalHydra

from sae_cli.config.compose import compose, expand
from sae_cli.config.convert import flat
from sae_cli.config.groups import GROUPS, choices, header
from sae_cli.config.schema import Config
from sae_cli.errors import UserError

BASE = ["source=three_features"]
NEEDED = {
    "model=local": ["model.path=x", "model.hook=blocks.0.hook_out"],
    "text=local": ["text.path=x.txt"],
    "text=hf": ["text.dataset=some/name"],
    "source=vectors": ["source.path=x.npy"],
}


def refusal(*overrides: str, config_dir: Path | None = None) -> str:
    with pytest.raises(UserError) as caught:
        compose([*BASE, *overrides], str(config_dir) if config_dir else None)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def own(folder: Path, name: str, text: str) -> Path:
    path = folder / f"{name}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return folder


def test_defaults_groups_and_values() -> None:
    config = compose(["sae=prolu_ste", "orthogonality=chunked", "train.lr=3e-4", "train.resample_at=[0.25,0.5]"])
    assert isinstance(config, Config)
    assert (config.model.name, config.text.name, config.source.kind) == ("tiny", "wiki", "language_model")
    assert (config.sae.nonlinearity, config.orthogonality.kind, config.orthogonality.weight) == (
        "prolu_ste",
        "chunked",
        0.25,
    )
    assert config.train.lr == 3e-4
    assert config.train.resample_at == [0.25, 0.5]
    assert type(config.train.resample_at) is list
    assert config.tracker.kind == "wandb"


def test_a_value_beats_its_group_in_any_order() -> None:
    assert compose([*BASE, "orthogonality.weight=0.5", "orthogonality=nearest"]).orthogonality.weight == 0.5


def test_experiments_set_values_and_groups_and_give_way_to_the_command_line() -> None:
    config = compose(["experiment=three_features", "sae.latents=7"])
    assert (config.name, config.source.kind, config.sae.latents) == ("three_features", "three_features", 7)
    assert compose(["experiment=three_features", "source=features"]).source.kind == "features"


def test_a_nonlinearity_brings_its_sparsity_and_gives_way_to_what_is_said() -> None:
    config = compose([*BASE, "sae=topk"])
    assert (config.sae.nonlinearity, config.sparsity.kind, config.sparsity.weight) == ("topk", "none", 0)
    assert compose([*BASE, "sae=jumprelu"]).sparsity.kind == "l0"
    for order in (["sae=jumprelu", "sparsity=tanh"], ["sparsity=tanh", "sae=jumprelu"]):
        assert compose([*BASE, *order]).sparsity.kind == "tanh"
    assert compose([*BASE, "sae=jumprelu", "train.beta1=0.5", "sae.theta=2"]).train.beta1 == 0.5
    assert compose(["experiment=three_features", "sae=matryoshka", "sae.k=2"]).sparsity.kind == "none"
    assert compose([*BASE, "sae=relu"]).sparsity.kind == "l1"


def test_experiments_may_choose_a_nonlinearity_that_brings_its_sparsity(tmp_path: Path) -> None:
    header = "# @package _global_\n# Mine.\ndefaults:\n  - override /sae: topk\n"
    own(tmp_path, "experiment/mine", header)
    own(tmp_path, "experiment/both", f"{header}  - override /sparsity: l1\nsparsity: {{weight: 0}}\n")
    kinds = [compose([*BASE, f"experiment={name}"], str(tmp_path)).sparsity.kind for name in ("mine", "both")]
    assert kinds == ["none", "l1"]
    assert compose([*BASE, "experiment=mine", "sae=relu"], str(tmp_path)).sparsity.kind == "l1"


def test_a_copied_nonlinearity_may_be_edited(tmp_path: Path) -> None:
    own(tmp_path, "sae/topk", choices("sae")["topk"].read_text().replace("topk\n", "topk\n  k: 7\n"))
    config = compose([*BASE, "sae=topk"], str(tmp_path))
    assert (config.sae.k, config.sparsity.kind) == (7, "none")


@pytest.mark.parametrize("choice", [f"{group}={name}" for group in GROUPS for name in choices(group)])
def test_every_shipped_choice_composes_and_says_what_it_is(choice: str) -> None:
    group, name = choice.split("=")
    assert flat(compose([choice, *NEEDED.get(choice, [])]))
    assert header(choices(group)[name])


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("train.lrr=3", "unknown key train.lrr. Did you mean train.lr"),
        ("+train.lrr=3", "unknown key train.lrr. Did you mean train.lr"),
        ("++lr=3", "unknown key lr. Did you mean train.lr"),
        ("experimnt=demo", "unknown key experimnt. Did you mean experiment"),
        ("zzzzzz=1", "`sae config keys` lists all keys"),
        ("sae=[relu]", "sae=['relu']: no such choice. Did you mean relu"),
        ("sae.grow=[[64,64]]", "sae.grow=[[64, 64]] has a list inside: write sae.grow=[...]"),
        ("cache.hooks=[{a:1}]", "cache.hooks=[{'a': 1}] has a list inside"),
        ("sae={relu:1}", "sae={'relu': 1}: no such choice"),
        ("model=tinny", "model=tinny: no such choice. Did you mean tiny"),
        ("train.lr=abc", "train.lr=abc is not a number"),
        ("train.batch=1e3", "train.batch=1000.0 is not a whole number: write train.batch=1000"),
        ("train.lr=null", "train.lr=None is not a number"),
        ("sae=relu,prolu_ste", "has several values: use `sae sweep`"),
        ("train.resample_at=0.2,0.5", "a list is written train.resample_at=[0.2,0.5]"),
        ("cache=3", "cache is a section: set one of its keys, such as cache.dir"),
        ("train.lr", "train.lr: overrides are written key=value"),
        ("text.path=/x,y(", "not a valid override"),
        ("train.lr=${oc.env:HOME}", "train.lr: ${function:...} is not run"),
        ("model.path=???", "model.path is not set: Hub name"),
        ("hydra.verbose=true", "sae sweep --launcher"),
        ("~train.lr", "only groups can be taken out"),
        ("~orthogonality", "orthogonality.kind is not set"),
        ("sae@other=relu", "packages (@) are not supported"),
    ],
)
def test_one_line_says_what_is_wrong(override: str, expected: str) -> None:
    assert expected in refusal(override)


def test_all_problems_are_named_at_once() -> None:
    line = refusal("trian.lr=3", "sae=rlu", "train.lr=-1", "train.beta1=x")
    for part in ("trian.lr", "sae=rlu", "train.lr=-1", "train.beta1=x"):
        assert part in line


def test_interpolations_are_resolved() -> None:
    assert compose([*BASE, "seed=3", "train.data_seed=${seed}"]).train.data_seed == 3


def test_a_user_folder_adds_and_replaces_choices(tmp_path: Path) -> None:
    own(tmp_path, "train/mine", "tokens: 123_456\n")
    own(tmp_path, "sae/relu", "nonlinearity: relu\nlatents: 77\n")
    config = compose([*BASE, "train=mine"], str(tmp_path))
    assert (config.train.tokens, config.sae.latents, config.sparsity.kind) == (123_456, 77, "l1")


def test_a_glob_sees_the_choices_of_a_user_folder(tmp_path: Path) -> None:
    own(tmp_path, "sae/prolu_mine", "nonlinearity: prolu_ste\n")
    assert ["sae=prolu_mine"] in expand(["sae=glob(prolu*)"], str(tmp_path))


def test_a_user_folder_may_hold_its_own_config(tmp_path: Path) -> None:
    own(
        tmp_path,
        "config",
        "defaults: [schema, source: three_features, sae: relu, sparsity: sqrt_l1, _self_]\nseed: 4\n",
    )
    with pytest.raises(UserError, match=r"model.name is not set.*tracker.kind is not set"):
        compose([], str(tmp_path))
    assert "orthogonality.kind is not set" in refusal(config_dir=tmp_path)


def test_problems_in_a_user_folder_name_the_file(tmp_path: Path) -> None:
    own(tmp_path, "train/unknown", "lrr: 3\n")
    own(tmp_path, "train/wrong", "lr: fast\n")
    own(tmp_path, "train/broken", "lr: [3\n")
    own(tmp_path, "train/aliases", "resample_at: &a [.5]\n# 2 * 3\nlr: *a\n")
    own(tmp_path, "experiment/nameless", "defaults:\n  - '@sae': topk\n")
    assert "train/unknown.yaml: unknown key train.lrr. Did you mean train.lr" in refusal(
        "train=unknown", config_dir=tmp_path
    )
    assert "train/wrong.yaml: train.lr" in refusal("train=wrong", config_dir=tmp_path)
    assert "train/broken.yaml" in refusal("train=broken", config_dir=tmp_path)
    assert "train/aliases.yaml: aliases (*name) are not read" in refusal("train=aliases", config_dir=tmp_path)
    assert "a defaults list that Hydra cannot read" in refusal("experiment=nameless", config_dir=tmp_path)
    assert "no such folder" in refusal(config_dir=tmp_path / "none")
    (tmp_path / "circle").symlink_to("circle")
    assert "no such folder" in refusal(config_dir=tmp_path / "circle")
    assert "no such folder" in refusal(config_dir=Path("~nobody-of-this-name/x"))
    assert "holds no group folder" in refusal(config_dir=tmp_path / "train")


def test_expand_makes_the_grid_in_hydras_grammar() -> None:
    assert expand(["a=1,2", "b=3", "c='x,y'"]) == [["a=1", "b=3", "c='x,y'"], ["a=2", "b=3", "c='x,y'"]]
    assert expand(["a=range(0,3)"]) == [["a=0"], ["a=1"], ["a=2"]]
    assert expand(["a=choice(x,y)", "b=[1,2],[3]"])[1] == ["a=x", "b=[3]"]
    assert expand(["sae=glob(*topk)"]) == [["sae=batchtopk"], ["sae=topk"]]
    assert expand([]) == [[]]
    with pytest.raises(UserError, match="interval"):
        expand(["a=interval(0,1)"])


@pytest.mark.parametrize(
    "word", ["(0,4,0)", "(0,.1,1e-400)", "(0,NaN)", "(0,inf)", "(NaN,1)", "(0,1,NaN)", "(-inf,0,inf)"]
)
def test_a_range_without_an_end_is_refused(word: str) -> None:
    assert len(expand([f"train.lr=range({10**400},{10**400 + 3})"])) == 3
    with pytest.raises(UserError, match=r"^train.lr=range\(.*: a range needs a finite start"):
        expand([f"train.lr=range{word}"])


def test_composing_leaves_an_outer_hydra_alone() -> None:
    marker = object()
    GlobalHydra.instance().hydra = marker  # type: ignore[assignment]
    try:
        compose(BASE)
        assert GlobalHydra.instance().hydra is marker
    finally:
        GlobalHydra.instance().clear()


def test_config_reference_needs_no_hydra() -> None:
    code = "import sys, sae_cli.cli; print([m for m in ('torch', 'hydra', 'omegaconf', 'wandb') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
