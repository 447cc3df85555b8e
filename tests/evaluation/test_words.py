"""Single-token words of the bundled tokenizer and the activations at them."""

import re
from dataclasses import replace

import pytest
import torch

from sae_cli.config.compose import compose
from sae_cli.evaluation.words import LINE, LINES, texts, vocabulary_words, word_activations
from sae_cli.sources.language_model import LanguageModel


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    return LanguageModel(compose(["model=tiny"]).model, "cpu")


def test_texts_of_tokens_join_to_the_text(model: LanguageModel) -> None:
    text = 'The "old" town (1984), north of Rome.'
    ids = model.tokenizer(text, add_special_tokens=False).input_ids
    assert "".join(texts(model.tokenizer, ids)) == text
    assert texts(model.tokenizer, [model.bos_id, ids[0]]) == ["", "The"]


def test_words_are_lowercase_unique_and_one_token_behind_a_space(model: LanguageModel) -> None:
    words = vocabulary_words(model.tokenizer, model.vocabulary)
    assert len(words) > 1000
    for word, token in words.items():
        assert re.fullmatch("[a-z]{2,}", word)
        assert model.tokenizer.decode([token]).lower() == " " + word
    spellings = [i for i in range(model.vocabulary) if model.tokenizer.decode([i]).lower() == " the"]
    assert words["the"] == min(spellings)
    assert list(words) == list(vocabulary_words(model.tokenizer, model.vocabulary)) != sorted(words)
    assert vocabulary_words(model.tokenizer, 500).items() < words.items()


@pytest.mark.parametrize("bos", [True, False])
def test_activations_are_those_at_the_word_behind_the_lines(bos: bool) -> None:
    model = LanguageModel(compose(["model=tiny", f"model.prepend_bos={bos}", "model.batch=7"]).model, "cpu")
    hook = model.settings.hook
    names, x_ND = word_activations(model, hook, 20)
    tokens = vocabulary_words(model.tokenizer, model.vocabulary)
    every = {word: model.tokenizer.decode([token]) for word, token in tokens.items()}
    assert names == list(every)[LINES : LINES + 20]
    lines = "".join(every[word] + LINE.format(word[0].upper()) for word in list(every)[:LINES])
    for i in (0, 19):
        ids = model.tokenizer(lines + every[names[i]], add_special_tokens=False).input_ids
        whole = torch.tensor([([model.bos_id] if bos else []) + ids + [300, 301]])  # what comes after is not seen
        torch.testing.assert_close(x_ND[i], model.read(whole, [hook])[hook][0, -3], rtol=1e-4, atol=1e-4)
    model.settings = replace(model.settings, batch=20)
    torch.testing.assert_close(word_activations(model, hook, 20)[1], x_ND, rtol=1e-4, atol=1e-4)


def test_lines_fit_into_the_context(model: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    lengths = []
    read = model.read
    monkeypatch.setattr(model, "read", lambda tokens, hooks: lengths.append(tokens.shape[1]) or read(tokens, hooks))
    for context in (128, 20, 2):
        model.settings = replace(model.settings, context=context)
        word_activations(model, model.settings.hook, 3)
    assert lengths[0] > 20 >= lengths[1] > 2 == lengths[2]
    assert word_activations(model, model.settings.hook, 0)[1].shape == (0, 0)
