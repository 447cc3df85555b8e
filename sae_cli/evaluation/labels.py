"""What the text itself says of its tokens: the labels of the probing tasks."""

import re
from string import punctuation

import numpy as np

TASKS = ("number", "capital", "parentheses", "quotation", "first_sentence", "sentence_start", "punctuation_next")


def token_labels(pieces: list[str], begins: bool) -> np.ndarray:
    """Return labels (task, token) of one document's part in a context: 1, 0, or -1 where nothing can be said.

    docs/eval-format.md (Sparse probing) defines the tasks. pieces: the text of each token, empty for special tokens,
    which have no labels; begins: the document begins here.
    """
    text = "".join(pieces)
    capital, first = np.full((2, len(text)), -1)
    for word in re.finditer(r"[^\W\d_]+", text):
        if begins or word.start():
            capital[word.start() : word.end()] = word[0][0].isupper()
    stop = re.search(r"[.!?](?=\s)", text)
    end = stop.end() if stop else len(text)
    first[:end], first[end:] = (1 if begins else -1), 0
    quotes = re.sub(r'(?<![^\s(\[])"', "“", text).replace('"', "”")
    parentheses, quotation = _between(text, "()"), _between(quotes, "“”")
    labels = np.full((len(TASKS), len(pieces)), -1)
    at = 0
    for i, piece in enumerate(pieces):
        if not piece:
            continue
        before, at = text[:at], at + len(piece)
        letter = re.search(r"[^\W\d_]", piece)
        following = pieces[i + 1].lstrip() if i + 1 < len(pieces) else ""
        labels[:, i] = (
            any(character.isdigit() for character in piece),
            capital[len(before) + letter.start()] if letter else -1,
            parentheses[at - 1],
            quotation[at - 1],
            first[at - 1],
            (before[-1] in ".!?" and piece[0].isspace()) if before else -1,
            following[0] in punctuation if following else -1,
        )
    return labels


def _between(text: str, marks: str) -> np.ndarray:
    """Return 1 between a pair of marks, 0 outside, -1 behind a mark never closed and before one never opened."""
    inside = np.zeros(len(text), dtype=int)
    opened: list[int] = []
    for i, character in enumerate(text):
        if character == marks[0]:
            opened.append(i)
        elif character == marks[1] and opened:
            inside[opened.pop() + 1 : i] = 1
        elif character == marks[1]:
            inside[:i] = -1
    for i in opened:
        inside[i + 1 :] = -1
    return inside
