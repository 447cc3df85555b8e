"""Targets that are typed or written by hand: overrides, grid files, configurations, ranges, URLs."""

from collections.abc import Callable
from pathlib import Path

from sae_cli.config.compose import compose, expand
from sae_cli.config.convert import flat, load_config, load_flat, to_yaml
from sae_cli.config.groups import GROUPS
from sae_cli.config.keys import by_name
from sae_cli.dashboard.latents import parse_latents
from sae_cli.runs.sweep import read_points
from sae_cli.store.remote import place
from tests.fuzz.target import Target

OVERRIDES = [
    b"sae=prolu_ste\ntrain.lr=3e-4\nsparsity.weight=1,2,4",
    b"experiment=demo\nsae.grow=[64,64]\n~sae.k\n+x=1",
    b"orthogonality=nearest orthogonality.weight='0.1'\nname=\"a b\"",
    b"train.resample_at=[0.25,0.5]\nmodel.path=${name}\nsae.latents=range(1,4)",
]
GRIDS = [
    b"method: grid\nparameters:\n  sae: {values: [relu, topk]}\n  train.lr: {value: 1e-3}\n",
    b"program: sae\nmethod: grid\nname: x\nmetric: {name: eval/l0, goal: minimize}\nproject: p\n"
    b'command: ["${env}", sae, train, "${args_no_hyphens}"]\n'
    b"parameters:\n  sparsity.weight:\n    values: [0.5, 1, 2e-3]\n  sae.grow: {values: [[64, 64], [32]]}\n",
]
SETTINGS = (
    b"# @package _global_\ndefaults:\n  - override /sae: topk\n  - _self_\ntrain:\n  lr: 1e-3\nname: ${model.name}\n"
)
PREFIXES = ["", "", "", "+", "++", "~"]
ODD_KEYS = ["nope", "hydra.x", "hydra/launcher", "sae@x", "sae/relu", "a..b", "0", "_target_", "sae.k.x", "train"]
VALUES = r"""
1 0 -1 1e400 NaN null true 0x10 1_000 .5 '' () [] {} [1,2] [[1],[2]] [null] [1e400] [true,1] [{a:1}] {a:1} {1:2} [x] ???
1,2 [1],[2] choice(a,b) choice([1,2],{a:3}) choice() range(0,3) range(3,0,-1) range(0,3,0) range(0,NaN) interval(0,1)
glob(*) glob([a*,r*],exclude=c) sort(3,1,2) sort(a,1) sort([1]) shuffle(range(3)) tag(x,choice(1,2)) int(3.5) int(abc)
float({a:x}) str([a,b]) bool([1]) bool(choice(1,2)) json_str({a:1}) extend_list(1,2) ${seed} [${seed}] ${nope}
${oc.env:HOME} relu tiny topk demo cpu ../x a:b file:x é a\,b " @ = %"""
URLS = [b"s3://bucket/prefix", b"file:///tmp/x", b"memory://a", b"/tmp/x", b"gs://b", b"simplecache::s3://b/c"]


def targets() -> dict[str, Target]:
    """Return the targets by name."""
    return {
        "overrides": Target(_overrides, "words", OVERRIDES),
        "grid": Target(_grid, "grid.yaml", GRIDS),
        "config": Target(_config, "config.yaml", [to_yaml(compose([])).encode()]),
        "own settings": Target(_own, "experiment/x.yaml", [SETTINGS]),
        "made overrides": Target(_made, "numbers", [b"\0m\x09\0\x90\0\0\x96\x37"], every=5),
        "latents": Target(_line(lambda words: parse_latents(words, 4096)), "words", [b"0-99,205", b"all", b" 1, 2-3"]),
        "url": Target(_line(place), "words", URLS),
    }


def _overrides(folder: Path) -> None:
    words = (folder / "words").read_bytes().decode(errors="replace").split("\n")[:6]
    words = [word.replace("\0", "") for word in words if word.replace("\0", "")]
    if not any(word.startswith("--") for word in words):
        points = expand(words) if words else [[]]
        compose(points[0])


def _made(folder: Path) -> None:
    """Each three bytes are an override: a prefix, a key and a value, each from its list."""
    keys, values = [*by_name(), *GROUPS, *ODD_KEYS], [*VALUES.split(), "", "a b", "\x1b[31m", "9" * 30, "9" * 400]
    data = (folder / "numbers").read_bytes()[:9]
    threes = zip(data[::3], data[1::3], data[2::3], strict=False)
    compose(expand([f"{PREFIXES[p % 6]}{keys[k % len(keys)]}={values[v % len(values)]}" for p, k, v in threes])[0])


def _grid(folder: Path) -> None:
    compose(read_points([str(folder / "grid.yaml"), "model=tiny"])[0])


def _config(folder: Path) -> None:
    config = load_config(folder / "config.yaml")
    assert repr(load_flat(folder / "config.yaml")) == repr(flat(config))  # NaN is not itself


def _own(folder: Path) -> None:
    compose(["experiment=x"], str(folder))


def _line(parse: Callable[[str], object]) -> Callable[[Path], object]:
    return lambda folder: parse((folder / "words").read_bytes().decode(errors="replace"))
