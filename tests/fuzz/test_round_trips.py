"""What is written is read again as it was: configurations, grids, overrides, manifests, records, SAEs, ranges, text."""

import json
import math
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from sae_cli.config.compose import compose
from sae_cli.config.convert import flat, load_config, load_flat, to_yaml
from sae_cli.config.schema_data import TextConfig
from sae_cli.dashboard.latents import parse_latents
from sae_cli.dictionary.artifact import SAE, load_sae, save_sae
from sae_cli.errors import UserError
from sae_cli.files import HASH, read_json, write_json
from sae_cli.interop.reading import load_foreign
from sae_cli.interop.writing import save_foreign
from sae_cli.runs.directory import RunDirectory
from sae_cli.runs.grid import join_grids, read_grid_file
from sae_cli.sources.text import documents
from sae_cli.store.format import Manifest, Part, StoredFile, file_bytes, read_manifest, shard_tensors

KINDS = st.sampled_from(["relu", "jumprelu", "topk", "gated"])
DTYPES = st.sampled_from(["bfloat16", "float32"])
quick = settings(deadline=None, max_examples=40, suppress_health_check=list(HealthCheck))
few = settings(quick, max_examples=5)
BASE = compose([])
NUMBERS = st.floats(allow_nan=False, allow_infinity=False)
WORDS = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
JSON = st.recursive(st.none() | st.booleans() | st.integers() | NUMBERS | WORDS, lambda one: st.lists(one, max_size=3))


@quick
@example("\x85", "\u2028", 1.0, 0, [])
@given(WORDS, WORDS, NUMBERS, st.integers(-(2**62), 2**62), st.lists(st.floats(0, 1), max_size=4))
def test_configurations(tmp_path: Path, path: str, hook: str, lr: float, seed: int, times: list[float]) -> None:
    config = replace(
        BASE,
        seed=seed,
        model=replace(BASE.model, path=path.replace("$", ""), hook=hook.replace("$", "")),
        train=replace(BASE.train, lr=lr, resample_at=times),
    )
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    assert load_config(tmp_path / "config.yaml") == config
    assert load_flat(tmp_path / "config.yaml") == flat(config)


@pytest.mark.slow
@few
@given(
    st.fixed_dictionaries(
        {
            "train.lr": st.floats(1e-8, 1),
            "seed": st.integers(0, 2**31),
            "train.deterministic": st.booleans(),
            "text.path": st.text("abcXYZ019 ._-/,=:'\"[]{}()#é", max_size=12),
        }
    )
)
def test_overrides_of_a_grid_file(tmp_path: Path, values: dict[str, object]) -> None:
    grid = {"method": "grid", "parameters": {key: {"values": [value]} for key, value in values.items()}}
    (tmp_path / "grid.yaml").write_text(yaml.safe_dump(grid, sort_keys=False))
    ((*words,),) = read_grid_file(tmp_path / "grid.yaml")
    assert words == [f"{key}={value}" for key, value in values.items()]
    numbers = [word for word in words if not word.startswith("text.path")]
    assert {key: flat(compose(numbers))[key] for key in values if key != "text.path"} == {
        key: value for key, value in values.items() if key != "text.path"
    }
    try:  # a word with special characters is refused, never cut or taken for something else
        found = compose(words).text.path
    except UserError:
        return
    assert found.strip("'\"") == str(values["text.path"]).strip().strip("'\"")


@quick
@given(st.lists(st.lists(st.sampled_from(["a=1", "a=2", "+b=1", "~c", "d.e=x"]), max_size=3), max_size=4))
def test_grids_join_with_nothing(points: list[list[str]]) -> None:
    once = [point for index, point in enumerate(points) if point not in points[:index]]
    assert join_grids(points, [[]]) == once
    assert join_grids([[]], points) == once


@quick
@given(
    st.integers(1, 5),
    st.lists(st.integers(1, 10**6), max_size=4),
    WORDS,
    NUMBERS,
    st.sampled_from(["bfloat16", "float32"]),
)
def test_manifests(tmp_path: Path, width: int, rows: list[int], words: str, number: float, dtype: str) -> None:
    files = [
        StoredFile(f"train-{index:05d}.safetensors", count, file_bytes(shard_tensors(count, width, dtype)), "0" * 64)
        for index, count in enumerate(rows)
    ]
    manifest = Manifest(
        fingerprint=words, hook=words, dtype=dtype, width=width, train=Part(sum(rows), files, []), validation=Part(),
        mean=[number] * width, mean_squared_norm=abs(number), variance=abs(number), source={"a": words},
        settings={"tokens": width}, created_by=words,
    )  # fmt: skip
    manifest.write(tmp_path)
    assert asdict(read_manifest(tmp_path)) == asdict(manifest)


@quick
@given(st.dictionaries(WORDS, JSON, max_size=5))
def test_records(tmp_path: Path, value: dict[str, object]) -> None:
    value.pop(HASH, None)
    write_json(tmp_path / "x.json", value)
    assert read_json(tmp_path / "x.json") == value


@quick
@given(st.dictionaries(st.sampled_from(["loss", "fvu", "l0"]), st.floats(), min_size=1))
def test_lines_of_metrics(tmp_path: Path, values: dict[str, float]) -> None:
    (tmp_path / "metrics.jsonl").unlink(missing_ok=True)
    RunDirectory(tmp_path).append_metrics(values)
    (line,) = RunDirectory(tmp_path).metrics()
    assert line == {key: value if math.isfinite(value) else None for key, value in values.items()}


@quick
@given(st.lists(st.tuples(st.integers(0, 99), st.integers(0, 99)).map(sorted), min_size=1, max_size=6))
def test_ranges_of_latents(pairs: list[list[int]]) -> None:
    words = ",".join(f"{a}" if a == b else f" {a}-{b}" for a, b in pairs)
    assert parse_latents(words, 100) == list(dict.fromkeys(i for a, b in pairs for i in range(a, b + 1)))


@quick
@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1), min_size=1, max_size=4))
def test_documents(tmp_path: Path, texts: list[str]) -> None:
    (tmp_path / "x.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    visible = [text for text in texts if text.strip()]
    found = documents(TextConfig(name="x", path=str(tmp_path / "x.jsonl"), validation=0.0), "train")
    if visible:
        assert list(found) == visible
    else:
        with pytest.raises(UserError, match="holds no text"):
            list(found)


@quick
@given(st.integers(1, 5), st.integers(1, 7), st.integers(0, 2**32), KINDS)
def test_saes(tmp_path: Path, width: int, latents: int, seed: int, kind: str) -> None:
    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 10 ** (seed % 9 - 4)

    stored = {"jumprelu": {"threshold": draw(latents).abs()}, "gated": {"r_mag": draw(latents), "b_mag": draw(latents)}}
    tensors = (draw(width, latents), draw(latents), draw(latents, width), draw(width))
    sae = SAE(kind, *tensors, k=int(kind == "topk"), stored=stored.get(kind, {}), metadata={"hook_name": "é"})
    save_sae(tmp_path / "own", sae)
    save_foreign(tmp_path / "theirs", sae, "saelens")
    for other in (load_sae(tmp_path / "own"), load_foreign(tmp_path / "theirs")):
        assert (other.nonlinearity, other.k) == (sae.nonlinearity, sae.k)
        for name in ("W_enc_DF", "b_enc_F", "W_dec_FD", "b_dec_D"):
            assert torch.equal(getattr(other, name), getattr(sae, name)), name
        assert other.stored.keys() == sae.stored.keys()
        assert all(torch.equal(other.stored[name], sae.stored[name]) for name in sae.stored)
