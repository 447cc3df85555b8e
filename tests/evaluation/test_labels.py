"""Labels of hand-written tokens."""

import numpy as np
import pytest

from sae_cli.evaluation.labels import TASKS, token_labels


def labels(task: str, pieces: list[str], begins: bool = True) -> list[int]:
    return token_labels(pieces, begins)[TASKS.index(task)].tolist()


@pytest.mark.parametrize(
    ("task", "expected"),
    [
        ("number", {"In": 0, " 19": 1, "84": 1, ",": 0, " the": 0, " B": 0, "BC": 0, " (": 0, "UK": 0, ")": 0, ".": 0}),
        ("capital", {"In": 1, " 19": -1, "84": -1, ",": -1, " the": 0, " B": 1, "BC": 1, " (": -1, "UK": 1, ")": -1}),
        ("parentheses", {"In": 0, " 19": 0, " B": 0, "BC": 0, " (": 0, "UK": 1, ")": 0, ".": 0, " It": 0}),
        ("first_sentence", {"In": 1, " 19": 1, "UK": 1, ")": 1, ".": 1, " It": 0, " was": 0}),
        ("sentence_start", {"In": -1, " 19": 0, ".": 0, " It": 1, " was": 0}),
        ("punctuation_next", {"In": 0, "84": 1, ",": 0, "BC": 1, " (": 0, "UK": 1, ")": 1, ".": 0, " was": -1}),
    ],
)
def test_each_task(task: str, expected: dict[str, int]) -> None:
    pieces = ["In", " 19", "84", ",", " the", " B", "BC", " (", "UK", ")", ".", " It", " was"]
    found = dict(zip(pieces, labels(task, pieces), strict=True))
    assert {piece: found[piece] for piece in expected} == expected


def test_quotation_marks_open_behind_a_space_and_close_behind_a_character() -> None:
    pieces = ["He", ' "', "said", " so", '"', " and", ' ("', "no", '")', " to", " “", "her", "”"]
    assert labels("quotation", pieces) == [0, 0, 1, 1, 0, 0, 0, 1, 0, 0, 0, 1, 0]


def test_parentheses_nest() -> None:
    assert labels("parentheses", ["a", "(", "b", "(", "c", ")", "d", ")", "e"]) == [0, 0, 1, 1, 1, 1, 1, 0, 0]


def test_what_this_part_does_not_tell_has_no_label() -> None:
    assert labels("parentheses", ["a", ")", "b", " (", "c"]) == [-1, 0, 0, 0, -1]
    assert labels("quotation", ["a", '"', " b"]) == [-1, 0, 0]
    # A part from the middle of a document: its first word and its first sentence may have begun earlier.
    pieces = ["Word", "s", " Here", ".", " Then", " more", "."]
    assert labels("capital", pieces, begins=False) == [-1, -1, 1, -1, 1, 0, -1]
    assert labels("first_sentence", pieces, begins=False) == [-1, -1, -1, -1, 0, 0, 0]
    assert labels("first_sentence", ["no", " end"]) == [1, 1]
    assert labels("first_sentence", ["no", " end"], begins=False) == [-1, -1]


def test_special_tokens_have_no_labels_and_change_none() -> None:
    plain = token_labels(["A", " b", " (", "c", ")."], begins=True)
    special = token_labels(["", "A", " b", " (", "c", ").", ""], begins=True)
    assert (special[:, [0, -1]] == -1).all()
    assert np.array_equal(special[:, 1:-1], plain)
    assert (token_labels(["", ""], begins=False) == -1).all()


def test_a_number_with_a_point_begins_no_sentence() -> None:
    assert labels("sentence_start", ["3", ".", "5", " m", "!", "\nSo"]) == [-1, 0, 0, 0, 0, 1]
    assert labels("first_sentence", ["3", ".", "5", " m", "!", "\nSo"]) == [1, 1, 1, 1, 1, 0]
