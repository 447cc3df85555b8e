"""The bundled model and text: size, contents, and quality on documents that the model has not seen."""

import gzip
import itertools
import json

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from sae_cli.assets import TINY, WIKI
from sae_cli.config.schema_data import TextConfig
from sae_cli.sources.text import documents
from tools.train_tiny import held_out


@pytest.fixture(scope="module")
def model():
    return AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32)


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(TINY)


@pytest.fixture(scope="module")
def unseen():
    text = TextConfig(name="wiki", path="bundled:wiki")
    return list(itertools.islice(documents(text, "validation"), 20))


def test_files_are_small():
    folder = sum(path.stat().st_size for path in TINY.iterdir())
    assert WIKI.stat().st_size <= 2_500_000
    assert folder + WIKI.stat().st_size <= 10_000_000
    assert {"config.json", "model.safetensors", "tokenizer.json", "README.md"} <= {p.name for p in TINY.iterdir()}


def test_text_has_distinct_titled_documents():
    records = [json.loads(line) for line in gzip.decompress(WIKI.read_bytes()).decode().splitlines()]
    assert len(records) > 9_000
    assert all(record["title"] and len(record["text"]) > 40 for record in records)
    assert len({record["text"] for record in records}) == len(records)


def test_model_is_the_one_described(model, tokenizer):
    assert model.config.vocab_size == tokenizer.vocab_size == len(tokenizer) == 4096
    assert model.config.num_hidden_layers == 2
    assert model.config.hidden_size == 256
    assert model.config.max_position_embeddings == 256
    assert 2_500_000 < sum(p.numel() for p in model.parameters()) < 3_500_000
    assert tokenizer.bos_token == tokenizer.eos_token == "<|endoftext|>"
    assert tokenizer.bos_token_id == model.config.bos_token_id == 0


def test_logits_are_finite_over_the_whole_context(model):
    tokens = torch.randint(1, 4096, (2, 256), generator=torch.Generator().manual_seed(0))
    tokens[:, 0] = 0
    with torch.no_grad():
        logits = model(tokens).logits
    assert logits.shape == (2, 256, 4096)
    assert torch.isfinite(logits).all()


@pytest.mark.parametrize("text", ["Größe: 5 µm — 東京 🙂", "a\n\tb  c ", "The cat's 1,234 won't.", "<|endoftext|>"])
def test_tokenizer_gives_the_text_back(tokenizer, text):
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text


def test_tokenizer_gives_documents_back_and_shortens_them(tokenizer, unseen):
    tokens = tokenizer(unseen, add_special_tokens=False)["input_ids"]
    assert tokenizer.batch_decode(tokens) == unseen
    assert sum(map(len, map(str.encode, unseen))) / sum(map(len, tokens)) > 3


def test_loss_on_unseen_documents(model, tokenizer, unseen):
    nats, count = held_out(model, tokenizer(unseen, add_special_tokens=False)["input_ids"])
    assert nats / count < 4.6


def test_card_states_the_measured_loss():
    card = (TINY / "README.md").read_text()
    bold = float(card.split("**")[1])
    assert 2 < bold < 4.6
    assert "CC BY-SA 4.0" in card
