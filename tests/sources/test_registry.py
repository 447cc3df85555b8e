"""Caches are made when missing, reused when they match, and planned to the byte."""

from pathlib import Path

import numpy as np
import pytest

from sae_cli.config.compose import compose
from sae_cli.errors import UserError
from sae_cli.sources import registry


def vectors(folder, *words):
    path = folder / "vectors.npy"
    if not path.exists():
        np.save(path, np.random.default_rng(0).normal(size=(3000, 8)).astype(np.float32))
    return compose(
        ["source=vectors", f"source.path={path}", f"cache.dir={folder / 'caches'}", "cache.tokens=0", *words]
    )


def test_a_cache_is_made_once(tmp_path, monkeypatch):
    config = vectors(tmp_path)
    (folder,) = registry.ensure_cache(config)
    before = (folder / "manifest.json").stat().st_mtime_ns
    monkeypatch.setattr(registry, "open_rows", lambda *_: pytest.fail("the cache was made again"))
    assert registry.ensure_cache(config) == [folder]
    assert (folder / "manifest.json").stat().st_mtime_ns == before


def test_other_settings_make_another_cache(tmp_path):
    one, other = (registry.ensure_cache(vectors(tmp_path, f"cache.dtype={kind}"))[0] for kind in ("float32", "float16"))
    assert one != other


def test_the_plan_counts_the_bytes_that_are_written(tmp_path):
    config = vectors(tmp_path)
    (plan,) = registry.plan_cache(config)
    assert plan["state"] == "new"
    (folder,) = registry.ensure_cache(config)
    written = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    assert plan["bytes"] == written
    assert registry.plan_cache(config)[0]["state"] == "done"


@pytest.mark.parametrize("hooks", ["[]", "[blocks.1.hook_out]"])
def test_the_plan_for_a_language_model_counts_tokens_files_too(tmp_path, hooks):
    config = compose(
        [f"cache.dir={tmp_path}", "cache.tokens=3000", "cache.validation_tokens=1000", f"cache.hooks={hooks}"]
    )
    planned = {plan["folder"]: plan["bytes"] for plan in registry.plan_cache(config)}
    for folder in registry.ensure_cache(config):
        written = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
        assert planned[str(folder)] == written


def test_training_finds_the_cache_that_was_made_for_several_hooks(tmp_path):
    words = [f"cache.dir={tmp_path}", "cache.tokens=3000", "cache.validation_tokens=1000"]
    folders = registry.ensure_cache(compose([*words, "cache.hooks=[blocks.1.hook_out]"]))
    assert registry.cache_folders(registry.training_part(compose(words))) == {"blocks.0.hook_out": folders[0]}
    assert registry.ensure_cache(compose([*words, "model.hook=blocks.1.hook_out"])) == [folders[1]]


def test_width_is_known_before_the_cache_for_a_local_model(tmp_path):
    assert registry.source_width(compose([f"cache.dir={tmp_path}"])) == 256
    assert registry.source_width(compose([f"cache.dir={tmp_path}", "model.hook=blocks.0.mlp.hook_post"])) is None
    assert registry.source_width(compose(["source=three_features"])) == 3
    assert registry.source_width(compose(["source=features"])) == 64


def test_synthetic_sources_have_no_cache():
    with pytest.raises(UserError, match="has no cache"):
        registry.ensure_cache(compose(["source=three_features"]))


def test_a_cache_of_another_model_in_the_folder_is_refused(tmp_path):
    (folder,) = registry.ensure_cache(vectors(tmp_path))
    config = vectors(tmp_path, "cache.dtype=float32")
    (expected,) = registry.cache_folders(config).values()
    Path(folder).rename(expected)
    with pytest.raises(UserError, match="belongs to cache"):
        registry.ensure_cache(config)
