"""First-letter absorption (arXiv 2409.14507): letters that a probe reads and whose latents are silent."""

from statistics import fmean
from string import ascii_lowercase
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from sae_cli.dictionary.artifact import SAE, row_scale
from sae_cli.evaluation.probe import HELD, MEMORY, f1, fit_dense, logits, probe_latents, random_control, shuffled
from sae_cli.evaluation.reconstruction import ratio

FEWEST = 12
"""Words of a letter, a third of them held out, below which it is left out."""
LEAST_F1 = 0.5
"""Held-out F1 of the probe below which a letter is left out."""
RISE = 0.03
"""Rise of the F1 on train words that makes one more latent a main latent of a letter."""
SIZES = range(1, 11)
"""Numbers of main latents that are tried."""
COSINE, SHARE = 0.025, 0.4
"""Least cosine with the probe, and least share of the projection, of a latent that absorbs."""


def first_letter(saes: list[SAE], words: list[str], x_ND: Tensor, memory_bytes: int = MEMORY) -> list[dict[str, Any]]:
    """Return the `first_letter` section of each SAE (docs/eval-format.md) from words and activations (N, D) at them."""
    letter_N = torch.tensor([ord(word[0]) - ord("a") for word in words], dtype=torch.int64, device=x_ND.device)
    y_LN = letter_N == torch.arange(26, device=x_ND.device)[:, None]
    held_N = ((y_LN.cumsum(1) % HELD == 0) & y_LN).any(0)  # every third word of each letter
    letters = [i for i, count in enumerate(y_LN.sum(1).tolist()) if count >= FEWEST]
    section: dict[str, Any] = {"words": len(words), "held_out": int(held_N.sum()), "letters": 0, "left_out": 26}
    if not letters:
        return [section for _ in saes]
    y_LN = y_LN[letters]
    w_LD, c_L = fit_dense(x_ND[~held_N], y_LN[:, ~held_N])
    noise = fit_dense(x_ND[~held_N], shuffled(y_LN[:, ~held_N]))
    f1_L, chance_L = (f1(logits(x_ND[None, held_N], *p) > 0, y_LN[:, held_N]) for p in ((w_LD, c_L), noise))
    section |= {"probe_f1": float(f1_L.mean()), "probe_f1_permuted": float(chance_L.mean())}
    good = (f1_L >= LEAST_F1).nonzero().squeeze(1).tolist()
    section |= {"letters": len(good), "left_out": 26 - len(good)}
    if not good:
        return [section for _ in saes]
    sections = []
    for sae in saes:
        pair = {"sae": sae, "random": random_control(sae, x_ND, memory_bytes)}
        probes = y_LN[good], w_LD[good], c_L[good]
        found = {name: absorption(one, x_ND, held_N, *probes, memory_bytes) for name, one in pair.items()}
        means = {name: {key: fmean(values) for key, values in one.items()} for name, one in found.items()}
        columns = found["sae"] | {"words": y_LN[good].sum(1).tolist(), "probe_f1": f1_L[good].tolist()}
        by_letter = {ascii_lowercase[letters[i]]: {k: v[at] for k, v in columns.items()} for at, i in enumerate(good)}
        sections.append(section | means | {"by_letter": by_letter})
    return sections


def absorption(
    sae: SAE, x_ND: Tensor, held_N: Tensor, y_LN: Tensor, w_LD: Tensor, c_L: Tensor, memory_bytes: int = MEMORY
) -> dict[str, list[float]]:
    """Return absorbed, silent, splitting and f1 of each letter, given labels (L, N) and probes (w, c) in raw units.

    docs/eval-format.md (First letters) defines these and how main latents are chosen, here among SIZES and by RISE.
    """
    logit_LKN, best_LS = probe_latents(sae, x_ND, held_N, y_LN[:, ~held_N], SIZES, True, memory_bytes)
    right_LN = (logits(x_ND[None], w_LD, c_L) > 0) & y_LN & held_N
    result: dict[str, list[float]] = {"absorbed": [], "silent": [], "splitting": [], "f1": []}
    for logit_KN, best_S, y_N, right_N, w_D in zip(logit_LKN, best_LS, y_LN, right_LN, w_LD, strict=True):
        y_KN = y_N.expand_as(logit_KN)
        size, highest = 0, 0.0
        for k, score in enumerate(f1(logit_KN[:, ~held_N] > 0, y_KN[:, ~held_N]).tolist()[: len(best_S)]):
            if k == 0 or score > highest + RISE:
                size = k + 1
            highest = max(highest, score)
        x_BD = x_ND[right_N]
        acts_BF = sae.encode(x_BD)
        silent_B = (acts_BF[:, best_S[:size]] == 0).all(1)
        largest_B, latent_B = (acts_BF * (sae.W_dec_FD.double() @ w_D)).max(1)
        centred_BD = (x_BD / row_scale(x_BD) if sae.input_norm == "row" else x_BD) - sae.b_dec_D
        projection_B = centred_BD.double() @ w_D
        aligned_B = cosine_similarity(sae.W_dec_FD[latent_B].double(), w_D[None]) >= COSINE
        absorbed_B = silent_B & aligned_B & (projection_B > 0) & (largest_B >= SHARE * projection_B)
        result["absorbed"].append(ratio(int(absorbed_B.sum()), len(x_BD)))
        result["silent"].append(ratio(int(silent_B.sum()), len(x_BD)))
        result["splitting"].append(size)
        result["f1"].append(float(f1(logit_KN[:, held_N] > 0, y_KN[:, held_N])[size - 1]))
    return result
