"""First-letter absorption where the answer is known: five of thirty held-out words of each letter are absorbed."""

from typing import Any

import pytest
import torch
from torch import Tensor

from sae_cli.dictionary.artifact import SAE
from sae_cli.evaluation.absorption import first_letter
from tests.evaluation.saes import zero_sae

LETTERS, WORDS, CHILDREN = 4, 90, 5
WIDTH = LETTERS * (1 + CHILDREN)


def planted(shift: float = 0.0) -> tuple[list[str], Tensor]:
    """Each letter has a direction; each of its five children a further one, on one held-out and two other words."""
    x = torch.zeros(LETTERS, WORDS, WIDTH)
    for letter in range(LETTERS):
        x[letter, :, letter] = 3
        for child in range(CHILDREN):
            x[letter, 9 * child : 9 * child + 3, LETTERS + letter * CHILDREN + child] = 2
    words = ["abcd"[letter] + "x" for letter in range(LETTERS) for _ in range(WORDS)]
    noise = 0.01 * torch.randn(len(words), WIDTH, generator=torch.Generator().manual_seed(0))
    return words, x.flatten(0, 1) + noise + shift


def dictionary(absorbs: bool, share: float = 1.0, **options: Any) -> SAE:
    """A latent per letter, silent with a child if the child's latent `absorbs` that share of the letter."""
    W_enc_FD, W_dec_FD = torch.eye(WIDTH), torch.eye(WIDTH)
    W_dec_FD[:LETTERS] *= 3
    W_dec_FD[LETTERS:] *= 2 * share
    for child in range(LETTERS, WIDTH) if absorbs else ():
        letter = (child - LETTERS) // CHILDREN
        W_enc_FD[letter, child] = -2
        W_dec_FD[child, letter] = 3 * share
    W_enc_FD[:LETTERS] /= 3
    W_enc_FD[LETTERS:] /= 2
    return SAE("relu", W_enc_FD.T.clone(), torch.full((WIDTH,), -0.1), W_dec_FD, torch.zeros(WIDTH), **options)


@pytest.mark.parametrize("input_norm", ["scalar", "row"])
def test_the_planted_share_is_found_and_none_where_none_is(input_norm: str) -> None:
    words, x_ND = planted()
    saes = [dictionary(absorbs, input_norm=input_norm) for absorbs in (True, False)]
    absorbing, honest = first_letter(saes, words, x_ND)
    assert absorbing["sae"]["absorbed"] == absorbing["sae"]["silent"] == pytest.approx(5 / 30)
    assert absorbing["sae"]["f1"] == pytest.approx(2 * 25 / (25 + 30))
    assert honest["sae"] == {"absorbed": 0, "silent": 0, "splitting": 1, "f1": 1}
    assert absorbing["sae"]["splitting"] == 1
    assert absorbing["probe_f1"] == honest["probe_f1"] == 1
    assert absorbing["probe_f1_permuted"] < 0.5
    assert (absorbing["letters"], absorbing["left_out"], absorbing["held_out"]) == (4, 22, 120)
    assert absorbing["by_letter"]["c"] == {**absorbing["sae"], "words": 90, "probe_f1": 1}


def test_a_shift_that_the_decoder_bias_holds_changes_nothing() -> None:
    words, x_ND = planted(shift=7)
    sae = dictionary(True)
    sae.b_dec_D += 7
    (section,) = first_letter([sae], words, x_ND)
    assert section["sae"]["absorbed"] == pytest.approx(5 / 30)


def test_silence_of_another_cause_is_not_absorption() -> None:
    words, x_ND = planted()
    lost, weak, strong = dictionary(True), dictionary(True, share=0.3), dictionary(True, share=0.5)
    lost.b_enc_F[LETTERS:] = -9
    for sae, absorbed in ((lost, 0), (weak, 0), (strong, 5 / 30)):
        (section,) = first_letter([sae], words, x_ND)
        assert section["sae"]["silent"] == pytest.approx(5 / 30)
        assert section["sae"]["absorbed"] == pytest.approx(absorbed)


def test_a_letter_in_two_halves_has_two_main_latents() -> None:
    words, x_ND = planted()
    half_N = torch.arange(len(words)) % 2 == 0
    x_ND = torch.cat([x_ND, torch.where(half_N, 1.0, -1.0)[:, None]], dim=1)
    W_FD = torch.zeros(2 * LETTERS, WIDTH + 1)
    for letter in range(LETTERS):
        W_FD[2 * letter : 2 * letter + 2, letter] = 1 / 3
        W_FD[2 * letter : 2 * letter + 2, -1] = torch.tensor([1.0, -1.0])
    sae = SAE("relu", W_FD.T.clone(), torch.full((2 * LETTERS,), -1.5), W_FD, torch.zeros(WIDTH + 1))
    (section,) = first_letter([sae], words, x_ND)
    assert section["sae"] == {"absorbed": 0, "silent": 0, "splitting": 2, "f1": 1}


def test_letters_without_words_or_without_a_probe_are_left_out() -> None:
    words, x_ND = planted()
    few = [*words, *["zx"] * 11], torch.cat([x_ND, torch.ones(11, WIDTH)])
    assert first_letter([dictionary(False)], *few)[0]["letters"] == 4
    noise = torch.randn(x_ND.shape, generator=torch.Generator().manual_seed(3))
    (section,) = first_letter([dictionary(False)], words, noise)
    assert (section["letters"], section["left_out"], "sae" in section) == (0, 26, False)
    assert section["probe_f1"] < 0.5
    assert first_letter([dictionary(False)], [], torch.zeros(0, 0))[0]["words"] == 0


def test_random_directions_and_a_silent_dictionary_absorb_nothing() -> None:
    words, x_ND = planted()
    silent, absorbing = first_letter([zero_sae(WIDTH), dictionary(True)], words, x_ND)
    assert silent["sae"] == {"absorbed": 0, "silent": 1, "splitting": 1, "f1": 0}
    assert silent["random"] == silent["sae"]
    assert absorbing["random"]["absorbed"] < 0.05 < absorbing["sae"]["absorbed"]
    assert absorbing["random"]["f1"] < absorbing["sae"]["f1"]
