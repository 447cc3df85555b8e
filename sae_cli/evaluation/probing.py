"""Sparse probing (arXiv 2305.01610): how well few latents tell what the text says of its tokens."""

from collections import Counter, defaultdict
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sae_cli.config.schema_data import TextConfig
from sae_cli.dictionary.artifact import SAE
from sae_cli.evaluation.labels import TASKS, token_labels
from sae_cli.evaluation.probe import HELD, MEMORY, f1, fit_dense, logits, probe_latents, random_control, shuffled
from sae_cli.evaluation.words import texts
from sae_cli.randomness import derive_seed
from sae_cli.sources.language_model import LanguageModel

SIZES = (1, 2, 5, 16)
"""Latents of a probe."""
PER_PART = 8
"""Rows of either label that a task takes of a document's part in a context at most."""
FEWEST = 20
"""Rows of either label in either part below which a task is left out."""


class Task(NamedTuple):
    """Rows of one task, as many with either label among those held out and among the others."""

    x_ND: Tensor
    y_N: Tensor
    held_N: Tensor


def probing_tasks(model: LanguageModel, text: TextConfig, hook: str, rows: int) -> dict[str, Task]:
    """Return the tasks, each with up to `rows` rows from the first rows/4 validation contexts.

    Every third document is held out, up to a third of the rows. Of a document's part in a context each task takes
    as many random rows with either label, PER_PART at most. One forward pass serves all tasks.
    """
    quota = (rows * (HELD - 1) // HELD, rows // HELD)
    counts: Counter[tuple[str, bool]] = Counter()
    found: dict[str, list[list[Any]]] = defaultdict(list)
    context, limit = 0, -(-rows // 4)
    for batch in model.contexts(text, "validation"):
        picked: list[tuple[str, bool, bool, int, int]] = []
        for row, tokens_T in enumerate(batch.tokens_CT[: limit - context]):
            pieces, document_T = texts(model.tokenizer, tokens_T.tolist()), batch.document_CT[row].numpy()
            cuts = [0, *(np.flatnonzero(np.diff(document_T)) + 1).tolist(), len(pieces)]
            random = np.random.default_rng(derive_seed("probing", context + row))
            for start, end in pairwise(cuts):
                held = bool(document_T[start] % HELD == 0)
                for task, labels_T in zip(TASKS, token_labels(pieces[start:end], begins=start > 0), strict=True):
                    places = [random.permutation(np.flatnonzero(labels_T == label)) for label in (0, 1)]
                    room = (quota[held] - counts[task, held]) // 2
                    size = min(len(places[0]), len(places[1]), PER_PART, room)
                    counts[task, held] += 2 * size
                    picked += [(task, bool(y), held, row, start + i) for y in (0, 1) for i in places[y][:size].tolist()]
        if picked:
            names, labels, parts, row_N, place_N = zip(*picked, strict=True)
            x_ND = model.read(batch.tokens_CT, [hook])[hook][list(row_N), list(place_N)].float()
            for name, *one in zip(names, x_ND, labels, parts, strict=True):
                found[name].append(one)
        context += len(batch.tokens_CT)
        if context >= limit:
            break
    tasks = {}
    for name in TASKS:
        if min(counts[name, False], counts[name, True]) >= 2 * FEWEST:
            rows_x, *flags = zip(*found[name], strict=True)
            x_ND = torch.stack(rows_x)
            tasks[name] = Task(x_ND, *(torch.tensor(flag, device=x_ND.device) for flag in flags))
    return tasks


def sparse_probing(saes: list[SAE], tasks: dict[str, Task], memory_bytes: int = MEMORY) -> list[dict[str, Any]]:
    """Return the `probing` section of each SAE; docs/eval-format.md defines each key."""
    by_task: list[dict[str, Any]] = [{} for _ in saes]
    for name, (x_ND, y_N, held_N) in tasks.items():
        truth_N = y_N[held_N]
        labels_2N = torch.cat([y_N[None, ~held_N], shuffled(y_N[None, ~held_N])])
        dense_2N = logits(x_ND[None, held_N], *fit_dense(x_ND[~held_N], labels_2N))
        shared: dict[str, Any] = {"rows": len(x_ND) - len(truth_N), "held_out": len(truth_N)}
        shared |= {
            key: _scores(dense_N, truth_N) for key, dense_N in zip(("dense", "dense_permuted"), dense_2N, strict=True)
        }
        shared["majority"] = _scores(torch.ones_like(dense_2N[0]), truth_N)
        for sae, section in zip(saes, by_task, strict=True):
            own_2KN, _ = probe_latents(sae, x_ND, held_N, labels_2N, SIZES, False, memory_bytes)
            control = random_control(sae, x_ND, memory_bytes)
            random_1KN, _ = probe_latents(control, x_ND, held_N, labels_2N[:1], SIZES, False, memory_bytes)
            section[name] = shared | {
                key: {str(k): _scores(logit_N[held_N], truth_N) for k, logit_N in zip(SIZES, logit_KN, strict=True)}
                for key, logit_KN in zip(("sae", "permuted", "random"), (*own_2KN, *random_1KN), strict=True)
            }
    return [{"tasks": section, "mean": _mean(list(section.values()))} for section in by_task]


def _scores(logit_N: Tensor, y_N: Tensor) -> dict[str, float]:
    accuracy = float(((logit_N > 0) == y_N).double().mean())
    return {"accuracy": accuracy, "f1": float(f1(logit_N[None] > 0, y_N[None])[0])}


def _mean(values: list[Any]) -> Any:
    """Return the mean of dictionaries of numbers, leaf by leaf; None of nothing."""
    if values and isinstance(values[0], dict):
        return {key: _mean([value[key] for value in values]) for key in values[0]}
    return sum(values) / len(values) if values else None
