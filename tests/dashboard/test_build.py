"""The whole page against brute force over the cache, and against the language model that it came from."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.nn.functional import normalize

from sae_cli.config.compose import compose
from sae_cli.dashboard.build import Extent, Other, Vocabulary, build
from sae_cli.dictionary.artifact import SAE
from sae_cli.sources.language_model import LanguageModel
from sae_cli.sources.registry import ensure_cache
from sae_cli.store.find import cache_fingerprint, cache_folder
from sae_cli.store.writer import write_caches
from tests.store.fakes import FakeRows, small_cache

WIDTH, LATENTS = 8, 12
SHOWN = [3, 0, 11]


def random_sae(width: int, latents: int, seed: int = 0, scale: float = 1.0) -> SAE:
    generator = torch.Generator().manual_seed(seed)
    W_dec_FD = torch.randn(latents, width, generator=generator)
    bias_F = torch.full((latents,), -1.0)
    bias_F[0] = -1e6
    return SAE("relu", W_dec_FD.T * scale, bias_F, W_dec_FD, torch.zeros(width))


@pytest.fixture(scope="module", params=[1, 7])
def vectors(tmp_path_factory, request):
    """A cache in several shuffled blocks, and its rows (N, D) in text order with their contexts."""
    source, parts = FakeRows({"a": WIDTH}, text=False), request.param
    cache = small_cache(shuffle_bytes=640, dtype="float32", parts=parts)
    folder = cache_folder(tmp_path_factory.mktemp("c"), "fake", "a", cache_fingerprint(source.fingerprint("a"), cache))
    for share in range(parts):
        write_caches(source, cache, {"a": folder}, share=share)
    shards = [load_file(file) for file in sorted(folder.glob("train-*"))]
    x_ND, context_N, position_N = (
        torch.cat([shard[name] for shard in shards]) for name in ("x", "context", "position")
    )
    order_N = (context_N.long() * 100 + position_N).argsort()
    return folder, x_ND[order_N], context_N[order_N].tolist(), position_N[order_N].tolist()


@pytest.mark.parametrize("memory_bytes", [1, 2**27])
def test_every_number_equals_brute_force(vectors, memory_bytes):
    folder, x_ND, contexts, positions = vectors
    config = compose(["source=vectors", "source.path=x.npy"])
    sae = random_sae(WIDTH, LATENTS, scale=0.05)
    extent = Extent(strongest=5, sampled=10, memory_bytes=memory_bytes)
    content = build(sae, config, folder, SHOWN, extent, "cpu")
    acts_NF = sae.encode(x_ND)
    assert content["rows"] == len(x_ND) == 450
    for place, latent in enumerate(SHOWN):
        acts = acts_NF[:, latent]
        best: dict[int, tuple[float, int]] = {}
        for value, context, position in zip(acts.tolist(), contexts, positions, strict=True):
            if value > best.get(context, (0.0, 0))[0]:
                best[context] = value, position
        top = sorted(((-value, context, position) for context, (value, position) in best.items()))[:5]
        examples = content["details"][place]["groups"][0]["examples"]
        assert [(one["context"], one["position"]) for one in examples] == [(c, p) for _, c, p in top]
        assert [one["value"] for one in examples] == pytest.approx([-value for value, _, _ in top], rel=1e-3)
        fired = acts[acts > 0]
        columns = {name: column[place] for name, column in content["columns"].items()}
        assert columns["id"] == latent
        assert columns["density"] == pytest.approx(len(fired) / 450, rel=1e-3)
        assert columns["max"] == pytest.approx(float(acts.max()), rel=1e-3)
        assert columns["mean"] == pytest.approx(float(fired.mean()) if len(fired) else 0, rel=1e-3)
        assert columns["norm"] == pytest.approx(float(sae.W_dec_FD[latent].norm()), rel=1e-3)
        counts, _ = np.histogram(fired.numpy(), bins=content["edges"])
        assert content["details"][place]["counts"] == counts.tolist()
        assert counts.sum() == len(fired)
        cosine_F = normalize(sae.W_dec_FD, dim=1) @ normalize(sae.W_dec_FD[latent], dim=0)
        cosine_F[latent] = -2
        ids = [one for one, _ in content["details"][place]["neighbours"]]
        assert ids == cosine_F.argsort(descending=True)[:6].tolist()
        assert columns["nearest"] == pytest.approx(float(cosine_F.max()), rel=1e-3)
    assert content["columns"]["density"][1] == 0, "latent 0 is dead"
    assert content["details"][1]["groups"] == [{"name": "top", "examples": []}]


def test_random_examples_are_firing_rows_in_falling_groups(vectors):
    folder, x_ND, contexts, positions = vectors
    sae = random_sae(WIDTH, LATENTS, scale=0.05)
    config = compose(["source=vectors", "source.path=x.npy"])
    content = build(sae, config, folder, [3], Extent(strongest=2, sampled=10), "cpu")
    value = dict(zip(zip(contexts, positions, strict=True), sae.encode(x_ND)[:, 3].tolist(), strict=True))
    groups = content["details"][0]["groups"][1:]
    assert [group["name"] for group in groups][:2] == ["quantiles 0.8 to 1", "quantiles 0.6 to 0.8"]
    drawn = [one for group in groups for one in group["examples"]]
    assert len(drawn) == 10
    assert len({one["context"] for one in drawn}) == 10
    for one in drawn:
        assert one["value"] == pytest.approx(value[one["context"], one["position"]], rel=1e-3)
        assert one["value"] > 0
    values = [one["value"] for one in drawn]
    assert values == sorted(values, reverse=True)


def test_rows_bound_what_is_read(vectors):
    folder, *_ = vectors
    config = compose(["source=vectors", "source.path=x.npy"])
    content = build(random_sae(WIDTH, LATENTS), config, folder, [1], Extent(rows=33, memory_bytes=1), "cpu")
    assert content["rows"] == 33


def test_a_known_sum_has_its_constituents(vectors):
    folder, *_ = vectors
    config = compose(["source=vectors", "source.path=x.npy"])
    atoms = random_sae(WIDTH, 6, seed=4)
    sae = random_sae(WIDTH, LATENTS)
    unit_FD = normalize(atoms.W_dec_FD, dim=1)
    sae.W_dec_FD[3] = 2 * unit_FD[1] + 0.5 * unit_FD[4]
    content = build(sae, config, folder, [3], Extent(), "cpu", Other(atoms, "runs/b", None))
    detail = content["details"][0]
    assert {atom for atom, *_ in detail["constituents"]} == {1, 4}
    assert detail["explained"][-1] == pytest.approx(1, abs=1e-3)
    assert content["columns"]["explained"] == [detail["explained"][-1]]
    assert content["columns"]["single"] == [detail["explained"][0]]
    size = float(sae.W_dec_FD[3].norm())
    assert {atom: c for atom, c, _ in detail["constituents"]}[1] == pytest.approx(2 / size, rel=1e-2)


@pytest.fixture(scope="module")
def language(tmp_path_factory):
    words = ["model=tiny", "text=wiki", "cache.tokens=3000", "cache.validation_tokens=500", "cache.dtype=float32"]
    config = compose([*words, f"cache.dir={tmp_path_factory.mktemp('c')}", "cache.shuffle_bytes=1000000"])
    (folder,) = ensure_cache(config)
    model = LanguageModel(config.model, "cpu")
    sae = random_sae(256, 40, scale=0.2)
    return config, folder, model, sae, build(sae, config, folder, list(range(40)), Extent(before=6, after=3), "cpu")


def test_tokens_and_activations_are_the_models(language):
    """Every token of an example has the activation that the model gives in its context."""
    config, _, model, sae, content = language
    batches = [batch.tokens_CT for batch in model.contexts(config.text, "train")][:4]
    tokens_CT = torch.cat(batches)
    x_CTD = torch.cat([model.read(batch, [config.model.hook])[config.model.hook] for batch in batches])
    seen = 0
    for latent, detail in enumerate(content["details"]):
        for example in detail["groups"][0]["examples"]:
            begin = example["position"] - example["at"]
            end = begin + len(example["t"])
            ids = tokens_CT[example["context"], begin:end].tolist()
            for place, (index, token) in enumerate(zip(example["t"], ids, strict=True)):
                text, raw = content["tokens"][index], model.token_text(token)
                whole = len(text) <= 2 and model.tokenizer.decode(ids[: place + 1]).endswith(text)
                assert text == raw or whole
            acts_T = sae.encode(x_CTD[example["context"], begin:end])[:, latent]
            if begin == 0:
                acts_T[0] = 0  # BOS is not in the cache
            assert example["a"] == pytest.approx(acts_T.tolist(), rel=2e-3, abs=1e-4)
            assert example["a"][example["at"]] == example["value"]
            seen += 1
    assert seen > 100


def test_the_last_token_of_a_character_shows_it(language):
    _, _, model, _, _ = language
    vocabulary = Vocabulary(model)

    def shown(tokens: list[int]) -> list[str]:
        return [vocabulary.words[index] for index in vocabulary.indices(tokens)]

    tokens = model.tokenizer("a 東京b", add_special_tokens=False).input_ids
    raw = [model.token_text(token) for token in tokens]
    assert len(tokens) > len("a 東京b")
    assert [new for new, old in zip(shown(tokens), raw, strict=True) if new != old] == ["東", "京"]
    assert shown(tokens)[-1] == "b"
    cut = tokens[3:-1]  # begins within a character, ends with the last one
    assert [text for text in shown(cut) if text in "東京"] == ["京"]
    assert shown(tokens[2:3]) == raw[2:3]


def test_logits_are_those_of_the_unembedding(language):
    _, _, model, sae, content = language
    weight_D = model._bridge.original_model.model.norm.weight
    W_U_DV = model._bridge.original_model.lm_head.weight.T
    logits_FV = (normalize(sae.W_dec_FD, dim=1) * weight_D) @ W_U_DV
    for latent, detail in enumerate(content["details"]):
        expected = logits_FV[latent].topk(10)
        assert [value for _, value in detail["positive"]] == pytest.approx(expected.values.tolist(), rel=2e-3)
        names = [content["tokens"][token] for token, _ in detail["positive"]]
        assert names == [model.token_text(token) for token in expected.indices.tolist()]
        lowest = (-logits_FV[latent]).topk(10).values
        assert [value for _, value in detail["negative"]] == pytest.approx((-lowest).tolist(), rel=2e-3)
