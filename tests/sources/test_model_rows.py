from dataclasses import replace
from types import SimpleNamespace
from unittest.mock import create_autospec

import datasets
import huggingface_hub
import pytest
import torch

from sae_cli.config.schema import CacheConfig, TextConfig
from sae_cli.errors import UserError
from sae_cli.sources import model_rows
from sae_cli.sources.language_model import LanguageModel, model_fingerprint
from sae_cli.sources.model_rows import LanguageModelRows, rows_fingerprint
from sae_cli.store.writer import write_caches
from tests.sources.conftest import HOOK, LAST, config_of


@pytest.fixture
def rows_of(tiny, monkeypatch):
    """Make a LanguageModelRows around the model that is already loaded."""

    def make(config):
        model = LanguageModel.__new__(LanguageModel)
        model.__dict__ = {**tiny.__dict__, "settings": config.model}
        monkeypatch.setattr(model_rows, "LanguageModel", lambda settings, device: model)
        return LanguageModelRows(config, "cpu")

    return make


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_restart_at_any_row_equals_the_full_stream(rows_of, dtype):
    source = rows_of(config_of(dtype, [LAST, HOOK]))
    assert source.widths == {HOOK: 256, LAST: 256}
    blocks = list(source.rows("train", 0))
    full = {hook: torch.cat([block.x[hook] for block in blocks]) for hook in source.hooks}
    places = torch.cat([torch.stack([block.context_N, block.position_N], 1) for block in blocks])
    count = len(places)
    assert count == sum(len(block.tokens_CT) for block in blocks) * 31
    for start in (0, 1, 4 * 31 - 1, 4 * 31, 500, count - 1):
        again = list(source.rows("train", start))
        assert start - 4 * 31 < again[0].start <= start
        assert again[0].first_context * 31 == again[0].start
        for hook in source.hooks:
            rest = torch.cat([block.x[hook] for block in again])[start - again[0].start :]
            assert rest.dtype == getattr(torch, dtype)
            assert torch.equal(rest, full[hook][start:])
        at = torch.cat([torch.stack([block.context_N, block.position_N], 1) for block in again])
        assert torch.equal(at[start - again[0].start :], places[start:])
    assert list(source.rows("train", count + 4 * 31)) == []


def test_rows_are_the_activations_without_bos(rows_of, tiny):
    block = next(rows_of(config_of("float32")).rows("train", 0))
    x_CTD = tiny.read(block.tokens_CT.long(), [HOOK])[HOOK]
    assert torch.equal(block.x[HOOK], x_CTD[:, 1:].reshape(-1, 256))
    assert block.position_N[:31].tolist() == list(range(1, 32))
    assert block.tokens_CT.dtype == block.document_CT.dtype == block.context_N.dtype == torch.int32
    kept = next(rows_of(config_of("float32", drop_bos=False)).rows("train", 0))
    assert torch.equal(kept.x[HOOK], x_CTD.reshape(-1, 256))
    assert kept.position_N[:2].tolist() == [0, 1]
    bare = next(rows_of(config_of("float32", prepend_bos=False)).rows("train", 0))
    assert len(bare.x[HOOK]) == 4 * 32
    assert torch.equal(bare.tokens_CT[0, :31], block.tokens_CT[0, 1:])


def test_values_that_are_not_finite_are_named(rows_of, monkeypatch):
    source = rows_of(config_of("float16", drop_bos=False))
    read = source.model.read

    def huge(tokens_CT, hooks):
        values = read(tokens_CT, hooks)
        values[HOOK][2, 5, 7] = 1e6
        return values

    monkeypatch.setattr(source.model, "read", huge, raising=False)
    says = r"model tiny, hook blocks\.0\.hook_out: .*context 2, position 5 \(document \d+\) is not finite in float16 "
    with pytest.raises(UserError, match=says + r"\(largest absolute value 1e\+06\).*cache\.dtype=bfloat16"):
        next(source.rows("train", 0))
    source.config.cache.dtype = "bfloat16"
    assert next(source.rows("train", 0)).x[HOOK].isfinite().all()


def cpu_memory(*ignored):
    torch.empty(1 << 60)


def cuda_memory(*ignored):
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")


@pytest.mark.parametrize("runs_out", [cpu_memory, cuda_memory])
def test_a_pass_without_memory_says_what_to_lower_and_the_cache_goes_on(rows_of, monkeypatch, tmp_path, runs_out):
    source = rows_of(config_of())
    cache = CacheConfig(tokens=900, validation_tokens=0, shuffle_bytes=1 << 16)
    expected, found = ({HOOK: tmp_path / name} for name in ("whole", "stopped"))
    write_caches(source, cache, expected)
    read, passes = source.model.read, iter(range(10**6))
    with monkeypatch.context() as patch:
        patch.setattr(source.model, "read", lambda *given: (read if next(passes) < 5 else runs_out)(*given))
        says = r"model\.batch=4: a forward pass of 4 contexts of 32 tokens .* memory of cpu; lower model\.batch to 2"
        with pytest.raises(UserError, match=says):
            write_caches(source, cache, found)
    source.config.model.batch = 1
    with monkeypatch.context() as patch:
        patch.setattr(source.model, "read", runs_out)
        with pytest.raises(UserError, match=r"lower model\.context or set model\.dtype"):
            write_caches(source, cache, found)
    source.config.model.batch = 4
    assert (found[HOOK] / "progress.json").exists()
    write_caches(source, cache, found)
    files = {path.name: path.read_bytes() for path in expected[HOOK].iterdir()}
    assert {path.name: path.read_bytes() for path in found[HOOK].iterdir()} == files


def test_another_error_of_a_pass_is_no_matter_of_memory(rows_of, monkeypatch):
    source = rows_of(config_of())
    monkeypatch.setattr(source.model, "read", lambda *given: torch.ones(2) @ torch.ones(3))
    with pytest.raises(RuntimeError, match="inconsistent tensor size"):
        next(source.rows("train", 0))


def test_fingerprints(rows_of, tmp_path):
    base = rows_fingerprint(config_of(), HOOK)
    assert rows_of(config_of()).fingerprint(HOOK) == base
    assert rows_fingerprint(config_of(batch=7, hooks=[LAST]), HOOK) == base
    others = [
        rows_fingerprint(config_of(), LAST),
        rows_fingerprint(config_of("float16"), HOOK),
        rows_fingerprint(config_of(context=64), HOOK),
        rows_fingerprint(config_of(drop_bos=False), HOOK),
        rows_fingerprint(config_of(processing="folded"), HOOK),
        rows_fingerprint(config_of(text_changes={"validation": 0.3}), HOOK),
        rows_fingerprint(config_of(path="gpt2"), HOOK),
        rows_fingerprint(config_of(path="gpt2", revision="v2"), HOOK),
        rows_fingerprint(config_of(path="pypi:gemma3_270m"), HOOK),
    ]
    assert len({base, *others}) == len(others) + 1
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_text("1")
    before = model_fingerprint(config_of(path=str(tmp_path)).model)
    (tmp_path / "model.safetensors").write_text("22")
    assert model_fingerprint(config_of(path=str(tmp_path)).model) != before


def test_describe_records_the_origin(rows_of):
    record = rows_of(config_of()).describe(HOOK)
    assert record["hook"] == HOOK
    assert record["model"]["processing"] == "raw"
    assert record["tokenizer"]["vocabulary"] == 4096
    assert record["text"]["fingerprint"] == model_rows.text_fingerprint(config_of().text)
    assert set(record["versions"]) == {"transformer_lens", "transformers", "torch"}


def test_a_hub_s_dataset_is_read_at_the_commit_that_the_manifest_names(rows_of, monkeypatch):
    asked = create_autospec(huggingface_hub.HfApi.dataset_info, return_value=SimpleNamespace(sha="a" * 40))
    read = create_autospec(datasets.load_dataset, side_effect=lambda *a, **k: iter([{"text": "A river. " * 400}] * 9))
    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", asked)
    monkeypatch.setattr(datasets, "load_dataset", read)
    text = TextConfig(name="hf", dataset="someone/texts", revision="main", validation=1e-9)
    source = rows_of(replace(config_of(), text=text))
    assert asked.call_args.args[1:] == ("someone/texts",)
    assert asked.call_args.kwargs["revision"] == "main"
    assert source.describe(HOOK)["text"]["commit"] == "a" * 40
    assert source.fingerprint(HOOK) == rows_fingerprint(replace(config_of(), text=text), HOOK)  # of `main`, as before
    next(source.rows("train", 0))
    assert read.call_args.kwargs["revision"] == "a" * 40
    asked.side_effect = ConnectionError("no network")
    silent = rows_of(replace(config_of(), text=text))
    assert "commit" not in silent.describe(HOOK)["text"]
    next(silent.rows("train", 0))
    assert read.call_args.kwargs["revision"] == "main"
