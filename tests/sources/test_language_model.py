import pytest
import torch
import transformers

from sae_cli.assets import TINY
from sae_cli.config.schema import TextConfig
from sae_cli.errors import UserError
from sae_cli.sources.language_model import LanguageModel
from sae_cli.sources.text import documents
from tests.sources.conftest import HOOK, LAST, config_of


@pytest.fixture(scope="module")
def reference():
    return transformers.AutoModelForCausalLM.from_pretrained(
        TINY, dtype=torch.float32, attn_implementation="eager"
    ).eval()


@pytest.fixture(scope="module")
def tokens_CT(tiny):
    return next(tiny.contexts(config_of().text, "train")).tokens_CT


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
        for i, document in enumerate(documents(text, "train"))
        for token in [*encode(document, add_special_tokens=False), tiny.separator_id]
    ]
    body = tokens_CT.shape[0] * 31
    assert [list(pair) for pair in stream[:body]] == torch.stack([tokens_CT, document_CT], -1)[:, 1:].reshape(
        -1, 2
    ).tolist()
    assert len(stream) - body < 31


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
