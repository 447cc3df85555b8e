import pytest
import torch
import transformers

from sae_cli.assets import TINY
from sae_cli.config.schema import CacheConfig, Config, ModelConfig, SourceConfig, TextConfig
from sae_cli.errors import UserError
from sae_cli.sources import language_model
from sae_cli.sources.language_model import LanguageModel, LanguageModelRows, model_fingerprint, rows_fingerprint
from sae_cli.store.writer import write_caches

HOOK = "blocks.0.hook_out"
LAST = "blocks.1.hook_out"


def config_of(dtype="bfloat16", hooks=(), text_changes=None, **changes):
    settings = {"name": "tiny", "path": "bundled:tiny", "hook": HOOK, "context": 32, "batch": 4} | changes
    return Config(
        model=ModelConfig(**settings),
        source=SourceConfig(kind="language_model"),
        text=TextConfig(name="wiki", path="bundled:wiki", max_documents=25, **(text_changes or {})),
        cache=CacheConfig(dtype=dtype, hooks=list(hooks)),
    )


@pytest.fixture(scope="module")
def tiny():
    return LanguageModel(config_of().model, "cpu")


@pytest.fixture(scope="module")
def reference():
    return transformers.AutoModelForCausalLM.from_pretrained(
        TINY, dtype=torch.float32, attn_implementation="eager"
    ).eval()


@pytest.fixture(scope="module")
def tokens_CT(tiny):
    return next(tiny.contexts(config_of().text, "train")).tokens_CT


@pytest.fixture
def rows_of(tiny, monkeypatch):
    """Make a LanguageModelRows around the model that is already loaded."""

    def make(config):
        model = LanguageModel.__new__(LanguageModel)
        model.__dict__ = {**tiny.__dict__, "settings": config.model}
        monkeypatch.setattr(language_model, "LanguageModel", lambda settings, device: model)
        return LanguageModelRows(config, "cpu")

    return make


def test_read_equals_hugging_face_hidden_states(tiny, reference, tokens_CT):
    names = ["blocks.0.hook_in", HOOK, "blocks.0.hook_resid_post"]
    read = tiny.read(tokens_CT, names)
    with torch.no_grad():
        hidden = reference(tokens_CT, output_hidden_states=True).hidden_states
    assert list(read) == names
    assert torch.allclose(read[names[0]], hidden[0], atol=1e-5)
    assert torch.allclose(read[HOOK], hidden[1], atol=1e-5)
    assert torch.equal(read["blocks.0.hook_resid_post"], read[HOOK])
    assert tiny.d_model(HOOK) == read[HOOK].shape[-1] == 256


def test_logits_equal_hugging_face(tiny, reference, tokens_CT):
    with torch.no_grad():
        logits_CTV = reference(tokens_CT).logits
    assert tiny.vocabulary == logits_CTV.shape[-1]
    assert torch.allclose(tiny.logits(tokens_CT), logits_CTV, atol=1e-4)


def test_read_stops_at_the_last_hook_needed(tiny, tokens_CT):
    calls = []
    model = tiny._bridge.original_model.model
    watched = {"layer 1": model.layers[1], "final norm": model.norm}
    handles = [
        part.register_forward_pre_hook(lambda *_, name=name: calls.append(name)) for name, part in watched.items()
    ]
    try:
        tiny.read(tokens_CT, [HOOK, "blocks.0.hook_in"])
        assert calls == []
        tiny.read(tokens_CT, [HOOK, LAST])
        assert calls == ["layer 1"]
        tiny.logits(tokens_CT)
        assert calls == ["layer 1", "layer 1", "final norm"]
        assert not any(point.has_hooks() for point in tiny._bridge.hook_dict.values())
    finally:
        for handle in handles:
            handle.remove()


@pytest.mark.parametrize("hook", [HOOK, LAST, "blocks.0.hook_resid_post", "blocks.1.attn.hook_z"])
def test_identity_splice_changes_nothing_and_is_called_once(tiny, tokens_CT, hook):
    shapes = []

    def identity(x_CTD):
        shapes.append(tuple(x_CTD.shape))
        return x_CTD.clone()

    assert torch.equal(tiny.logits(tokens_CT, hook, identity), tiny.logits(tokens_CT))
    assert shapes == [(*tokens_CT.shape, 256)]
    assert not torch.equal(tiny.logits(tokens_CT, hook, torch.zeros_like), tiny.logits(tokens_CT))


def test_splice_is_what_later_layers_read(tiny, reference, tokens_CT):
    spliced_CTV = tiny.logits(tokens_CT, LAST, lambda x_CTD: 2 * x_CTD + 1)
    with torch.no_grad():
        x_CTD = tiny.read(tokens_CT, [LAST])[LAST]
        expected_CTV = reference.lm_head(reference.model.norm(2 * x_CTD + 1))
    assert torch.allclose(spliced_CTV, expected_CTV, atol=1e-4)


def test_folded_processing_keeps_the_probabilities_and_splices_once():
    model = LanguageModel(config_of(processing="folded").model, "cpu")
    raw = LanguageModel(config_of().model, "cpu")
    tokens_CT = next(raw.contexts(config_of().text, "train")).tokens_CT
    folded_CTV, raw_CTV = model.logits(tokens_CT).log_softmax(-1), raw.logits(tokens_CT).log_softmax(-1)
    assert torch.allclose(folded_CTV, raw_CTV, atol=1e-3)
    calls = []
    model.logits(tokens_CT, "blocks.0.hook_resid_post", lambda x_CTD: calls.append(1) or x_CTD)
    assert calls == [1]


def test_contexts_are_the_tokenized_documents(tiny):
    text = config_of().text
    batches = list(tiny.contexts(text, "train"))
    assert [len(batch.tokens_CT) for batch in batches[:-1]] == [4] * (len(batches) - 1)
    tokens_CT = torch.cat([batch.tokens_CT for batch in batches])
    document_CT = torch.cat([batch.document_CT for batch in batches])
    assert (tokens_CT[:, 0] == tiny.bos_id).all()
    encode = tiny.tokenizer.encode
    stream = [
        (token, i)
        for i, document in enumerate(language_model.documents(text, "train"))
        for token in [*encode(document, add_special_tokens=False), tiny.separator_id]
    ]
    body = tokens_CT.shape[0] * 31
    assert [list(pair) for pair in stream[:body]] == torch.stack([tokens_CT, document_CT], -1)[:, 1:].reshape(
        -1, 2
    ).tolist()
    assert len(stream) - body < 31


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
    assert record["text"]["fingerprint"] == language_model.text_fingerprint(config_of().text)
    assert set(record["versions"]) == {"transformer_lens", "transformers", "torch"}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"hook": "blocks.0.hook_outt"}, r"model\.hook=blocks\.0\.hook_outt: .*Did you mean .*blocks\.0\.hook_out"),
        ({"hook": "transformer.h.0"}, r"no such hook\. Its layers end at blocks\.0\.hook_out to blocks\.1\.hook_out"),
        ({"context": 4096}, r"model\.context=4096: bundled:tiny takes at most 256"),
        ({"path": "bundled:tinny"}, r"no such model\. Did you mean bundled:tiny"),
        ({"path": "./nowhere/model"}, r"no such folder"),
        ({"path": str(TINY.parent)}, r"holds no config\.json"),
    ],
)
def test_mistakes_are_one_clear_line(changes, says):
    with pytest.raises(UserError, match=says) as error:
        LanguageModel(config_of(**changes).model, "cpu")
    assert "\n" not in str(error.value)


def test_a_folder_without_a_tokenizer_or_with_another_model_s_is_refused(tiny, tmp_path):
    for file in ("config.json", "model.safetensors"):
        (tmp_path / file).symlink_to(TINY / file)
    with pytest.raises(UserError, match=r"holds no tokenizer: write one there with tokenizer\.save_pretrained"):
        LanguageModel(config_of(path=str(tmp_path)).model, "cpu")
    with pytest.raises(UserError, match=r"gives token 4096, the model knows only 4096 tokens"):
        tiny.read(torch.tensor([[0, 4096]]), [HOOK])


def test_unusable_hooks_and_too_little_text_are_refused(tiny, tokens_CT, tmp_path):
    with pytest.raises(UserError, match="not one vector per token"):
        tiny.read(tokens_CT, ["blocks.0.attn.hook_pattern"])
    with pytest.raises(UserError, match="never fires"):
        tiny.read(tokens_CT, ["blocks.0.attn.hook_result"])
    (tmp_path / "short.txt").write_text("Short.")
    short = TextConfig(name="short", path=str(tmp_path), validation=1e-9)
    with pytest.raises(UserError, match="the train part has fewer tokens than one context of 32"):
        list(tiny.contexts(short, "train"))


def test_hub_model_offline_says_what_to_do(monkeypatch):
    import huggingface_hub.constants

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", "/nonexistent")
    with pytest.raises(
        UserError, match=r"model\.path=gpt2 cannot be loaded .*once with a network, or set model\.path to a local"
    ) as error:
        LanguageModel(config_of(path="gpt2", hook="blocks.6.hook_in").model, "cpu")
    assert "\n" not in str(error.value)
