"""The content of a feature page (docs/dashboard-format.md): one pass over the cache, then what the weights say."""

import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from sae_cli import __version__
from sae_cli.comparison.arithmetic import pursue
from sae_cli.config.schema import Config
from sae_cli.dashboard.examples import Examples, Found, Statistics, sample_keys
from sae_cli.dashboard.latents import nearest
from sae_cli.dictionary.artifact import SAE
from sae_cli.progress import RowProgress
from sae_cli.sources import Split
from sae_cli.sources.language_model import RESIDUAL, LanguageModel
from sae_cli.sources.vectors import BLOCK
from sae_cli.store.contexts import read_contexts, read_tokens
from sae_cli.store.format import read_manifest

DECADE = 15
"""Bins of the activation histograms per factor of ten."""
EDGES = torch.logspace(-3, 3, 6 * DECADE + 1)
"""Their edges, units of the scaled input."""
BANDS = 5
"""Groups into which the random examples are cut, from the strongest to the weakest."""
LOGITS = 10
NEIGHBOURS = 6
"""Tokens at either end of the logits, and nearest latents, that are named."""
PIECE = 64
"""Directions whose logits exist at a time."""


@dataclass(frozen=True)
class Extent:
    """How much is read and shown."""

    split: Split = "train"
    rows: int = 1_000_000
    """Rows read at most; 0: the whole part."""
    strongest: int = 12
    sampled: int = 20
    """Examples per latent: the strongest, and random ones."""
    before: int = 24
    after: int = 8
    """Tokens shown on either side."""
    memory_bytes: int = 2**26
    """Bound on the activations that exist at a time."""
    seed: int = 0


@dataclass(frozen=True)
class Other:
    """Another SAE, of whose directions those of the page may be sums."""

    sae: SAE
    run: str
    page: str | None
    """Relative link to its feature page, if there is one."""


@torch.no_grad()
def build(
    sae: SAE, config: Config, folder: Path, ids: Sequence[int], extent: Extent, device: str, other: Other | None = None
) -> dict[str, Any]:
    """Return the page's content for latents `ids` of an SAE on the cache in `folder` that `config` describes.

    Title and run are the caller's to add. One pass over the cache; memory extent.memory_bytes, one block of the
    cache, and (strongest + sampled) * (before + after) numbers per latent.
    """
    sae = sae.to(device)
    ids_L = torch.tensor(ids, device=device)
    length = config.model.context if config.source.kind == "language_model" else BLOCK
    statistics, strongest, sampled = read(sae, ids_L, folder, length, extent, device)
    model = LanguageModel(config.model, device) if config.source.kind == "language_model" else None
    if model:
        model.check_commit(read_manifest(folder).source)
    vocabulary = Vocabulary(model)
    both = (strongest.found, sampled.found)
    shown = torch.cat([found.context_KL[found.score_KL > 0] for found in both]).unique()
    texts = read_tokens(folder, extent.split, shown.tolist())
    cosine_LK, neighbour_LK = nearest(sae.W_dec_FD, ids_L, NEIGHBOURS)
    begin, end = _decades(statistics.counts_LH)
    details: list[dict[str, Any]] = []
    for row in range(len(ids)):
        top, drawn = (_examples(found, row, texts, extent, vocabulary) for found in both)
        details.append(
            {
                "counts": statistics.counts_LH[row, begin:end].tolist(),
                "neighbours": _pairs(neighbour_LK[row], cosine_LK[row]),
                "groups": [{"name": "top", "examples": top}, *_bands(drawn)],
            }
        )
    if model and RESIDUAL.fullmatch(config.model.hook):
        _add_logits(details, model, sae.W_dec_FD[ids_L], vocabulary)
    if other:
        _add_constituents(details, sae.W_dec_FD[ids_L], other.sae.to(device).W_dec_FD)
    where = f"{config.model.name} · {config.model.hook}" if model else config.source.path
    fired_L = statistics.fired_L
    return {
        "facts": [
            ["activations", where],
            *([["text", config.text.name]] if model else []),
            ["rows read", f"{statistics.rows:,} ({extent.split})"],
            ["latents", f"{len(ids):,} of {len(sae.W_dec_FD):,}"],
            ["SAE", f"{sae.nonlinearity}, D {sae.W_dec_FD.shape[1]:,}"],
            ["made by", f"sae {__version__}"],
        ],
        "rows": statistics.rows,
        "latents": len(sae.W_dec_FD),
        "text": model is not None,
        "before": extent.before,
        "after": extent.after,
        "edges": _short(EDGES[begin : end + 1]),
        "tokens": vocabulary.words,
        "other": {"name": "B", "run": other.run, "page": other.page} if other else None,
        "columns": {
            "id": list(ids),
            "density": _short(fired_L.double() / max(1, statistics.rows)),
            "max": _short(strongest.found.score_KL[0]),
            "mean": _short(statistics.sum_L / fired_L.clamp(min=1)),
            "bias": _short(sae.b_enc_F[ids_L]),
            "norm": _short(sae.W_dec_FD[ids_L].norm(dim=1)),
            "nearest": _short(cosine_LK[:, 0]) if cosine_LK.shape[1] else [None] * len(ids),
            "explained": [one["explained"][-1] if other else None for one in details],
            "single": [one["explained"][0] if other else None for one in details],
            "top": [_peak(one["groups"][0]["examples"]) for one in details],
        },
        "details": details,
    }


def read(
    sae: SAE, ids_L: Tensor, folder: Path, length: int, extent: Extent, device: str
) -> tuple[Statistics, Examples, Examples]:
    """Return statistics, strongest and random examples of latents ids_L from one pass over contexts of `length`."""
    latents = len(ids_L)
    statistics = Statistics(latents, EDGES, device)
    strongest, sampled = (
        Examples(latents, count, extent.before, extent.after, device) for count in (extent.strongest, extent.sampled)
    )
    # Pre-activations and latents of a row, then the chosen latents' values, keys and what sorting them needs.
    row_bytes = 4 * (3 * len(sae.W_dec_FD) + 6 * latents)
    size = max(1, extent.memory_bytes // row_bytes // length) * length
    wanted = min(extent.rows or sys.maxsize, getattr(read_manifest(folder), extent.split).rows)
    with RowProgress("read") as progress:
        for rows in read_contexts(folder, extent.split, size):
            left = wanted - statistics.rows
            acts_NL = sae.encode(rows.x_ND[:left].to(device).float())[:, ids_L]
            statistics.add(acts_NL)
            context_C, index_N = rows.context_N[:left].to(device).unique_consecutive(return_inverse=True)
            acts_CTL = acts_NL.new_zeros(len(context_C) * length, latents)
            acts_CTL = acts_CTL.index_copy_(0, index_N * length + rows.position_N[:left].to(device), acts_NL)
            acts_CTL = acts_CTL.view(len(context_C), length, latents)
            strongest.add(acts_CTL.abs(), acts_CTL, context_C)
            sampled.add(sample_keys(acts_CTL, context_C, extent.seed), acts_CTL, context_C)
            progress.update(statistics.rows, wanted)
            if statistics.rows == wanted:
                break
    return statistics, strongest, sampled


class Vocabulary:
    """The texts of the tokens that a page uses, each once."""

    def __init__(self, model: LanguageModel | None) -> None:
        self._model = model
        self._index: dict[int | str, int] = {}
        self._parts: set[int] = set()
        """Tokens that are no whole character."""
        self.words: list[str] = []

    def index(self, token: int) -> int:
        """Return the index in `words` of a token by itself."""
        if token not in self._index and self._model:
            if "\ufffd" in self._model.tokenizer.decode([token]):
                self._parts.add(token)
            self._place(token, self._model.token_text(token))
        return self._index[token]

    def indices(self, tokens: list[int]) -> list[int]:
        """Return the index of each token of a text; the last of those that make up one character shows it."""
        found = [self.index(token) for token in tokens]
        for end, first in ((i, max(0, i - 3)) for i, token in enumerate(tokens) if token in self._parts):
            assert self._model
            for begin in range(end - 1, first - 1, -1):
                text = self._model.tokenizer.decode(tokens[begin : end + 1])
                if tokens[begin] in self._parts and "\ufffd" not in text:
                    found[end] = self._place(text, text)
                    break
        return found

    def _place(self, key: int | str, text: str) -> int:
        if key not in self._index:
            self._index[key] = len(self.words)
            self.words.append(text)
        return self._index[key]


def _examples(
    found: Found, row: int, texts: dict[int, list[int]], extent: Extent, vocabulary: Vocabulary
) -> list[dict[str, Any]]:
    """Return a latent's examples, each with its tokens and their activations."""
    examples = []
    columns = (found.score_KL, found.context_KL, found.position_KL, found.window_KLW)
    for score, context, position, window in zip(*(column[:, row].tolist() for column in columns), strict=True):
        if not score:
            break
        tokens = texts.get(context, [])
        begin, end = max(0, position - extent.before), min(len(tokens), position + extent.after + 1)
        first = begin - position + extent.before
        examples.append(
            {
                "context": context,
                "position": position,
                "value": _short(window[extent.before]),
                "at": position - begin,
                "t": vocabulary.indices(tokens[begin:end]),
                "a": _short(window[first : first + end - begin]) if tokens else [],
            }
        )
    return examples


def _bands(examples: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Cut random examples into groups of equal size by activation, the strongest first."""
    ranked = sorted(examples, key=lambda one: -abs(one["value"]))
    cuts = [len(ranked) * band // BANDS for band in range(BANDS + 1)]
    return [
        {"name": f"quantiles {1 - (band + 1) / BANDS:g} to {1 - band / BANDS:g}", "examples": ranked[low:high]}
        for band, (low, high) in enumerate(pairwise(cuts))
        if low < high
    ]


def _decades(counts_LH: Tensor) -> tuple[int, int]:
    """Return the bins between which any latent has counts, in whole factors of ten; at least one."""
    used = counts_LH.sum(0).nonzero()[:, 0].tolist() or [0]
    return used[0] // DECADE * DECADE, (used[-1] // DECADE + 1) * DECADE


def _add_logits(details: list[dict[str, Any]], model: LanguageModel, W_LD: Tensor, vocabulary: Vocabulary) -> None:
    """Add the tokens that each unit direction makes most and least likely."""
    for begin in range(0, len(details), PIECE):
        logits_NV = model.direct_logits(normalize(W_LD[begin : begin + PIECE].float(), dim=1))
        for name, sign in (("positive", 1), ("negative", -1)):
            best = (sign * logits_NV).topk(LOGITS)
            for detail, tokens, values in zip(details[begin:], best.indices.tolist(), best.values, strict=False):
                indices = [vocabulary.index(token) for token in tokens]
                detail[name] = list(zip(indices, _short(sign * values), strict=True))


def _add_constituents(details: list[dict[str, Any]], W_LD: Tensor, atoms_FD: Tensor) -> None:
    """Add the non-negative sum of at most three directions of the other SAE that comes nearest to each direction."""
    fit = pursue(W_LD, atoms_FD)
    columns = (fit.atoms_NT, fit.coefficients_NT, fit.cosines_NT, fit.explained_NT)
    for detail, atoms, coefficients, cosines, explained in zip(details, *columns, strict=True):
        terms = zip(atoms.tolist(), _short(coefficients), _short(cosines), strict=True)
        detail["constituents"] = [term for term in terms if term[1] > 0]
        detail["explained"] = _short(explained)


def _peak(examples: list[dict[str, Any]]) -> int:
    """Return the token at most examples' peaks, the first of equally frequent ones; -1 without text."""
    peaks = Counter(one["t"][one["at"]] for one in examples if one["t"])
    return peaks.most_common(1)[0][0] if peaks else -1


def _pairs(ids_K: Tensor, values_K: Tensor) -> list[tuple[int, float]]:
    return list(zip(ids_K.tolist(), _short(values_K), strict=True))


def _short(value: Any) -> Any:
    """Return numbers with four digits: enough for the eye, and a third of the bytes."""
    if isinstance(value, Tensor):
        value = value.tolist()
    if isinstance(value, list):
        return [_short(one) for one in value]
    return float(f"{value:.4g}") if value % 1 else int(value)
