"""Words that are one token, behind lines that tell first letters, and what a model computes at them."""

import re

import torch
from torch import Tensor

from sae_cli.randomness import derive_seed
from sae_cli.sources.language_model import LanguageModel

LINES = 4
"""Lines in front of the word, fewer if model.context has no room."""
LINE = " has the first letter: {}\n"


def texts(tokenizer, ids: list[int]) -> list[str]:
    """Return what each token adds to a text behind another token, its space included; nothing for special tokens."""
    anchor = tokenizer("a", add_special_tokens=False).input_ids
    options = {"skip_special_tokens": True, "clean_up_tokenization_spaces": False}
    start = len(tokenizer.decode(anchor, **options))
    return [text[start:] for text in tokenizer.batch_decode([[*anchor, i] for i in ids], **options)]


def vocabulary_words(tokenizer, size: int) -> dict[str, int]:
    """Return {word: token} of tokens below `size` that are a space and two or more letters a-z of either case.

    Of several spellings of a lowercased word the first token counts. The order is random but always the same.
    """
    # The raw token tells almost all others apart without decoding them; the space may be any one character.
    raw = tokenizer.convert_ids_to_tokens(range(size))
    ids = [i for i, token in enumerate(raw) if isinstance(token, str) and re.fullmatch(r".?[A-Za-z]{2,}", token)]
    words: dict[str, int] = {}
    for i, text in zip(ids, texts(tokenizer, ids), strict=True):
        if re.fullmatch(r" [A-Za-z]{2,}", text):
            words.setdefault(text[1:].lower(), i)
    names = list(words)
    order = torch.randperm(len(names), generator=torch.Generator().manual_seed(derive_seed("words")))
    return {names[i]: words[names[i]] for i in order.tolist()}


def word_activations(model: LanguageModel, hook: str, count: int) -> tuple[list[str], Tensor]:
    """Return up to `count` words and the activations (N, D) at their tokens, the last that the model sees.

    In front of each stand BOS, as the model's settings have it, and up to LINES lines of other words, all the same.
    """
    settings = model.settings
    words = vocabulary_words(model.tokenizer, min(len(model.tokenizer), model.vocabulary))
    prefix = [model.bos_id] if settings.prepend_bos else []
    names = list(words)
    for name in names[:LINES]:
        line = model.tokenizer(LINE.format(name[0].upper()), add_special_tokens=False).input_ids
        if len(prefix) + len(line) + 2 <= settings.context:
            prefix = [*prefix, words[name], *line]
    names = names[LINES : LINES + count]
    tokens_NT = torch.tensor([[*prefix, words[name]] for name in names], dtype=torch.int64).view(
        len(names), len(prefix) + 1
    )
    parts = [model.read(part_CT, [hook])[hook][:, -1].float() for part_CT in tokens_NT.split(settings.batch) if names]
    return names, torch.cat(parts) if parts else torch.zeros(0, 0)
