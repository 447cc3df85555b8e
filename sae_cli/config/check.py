"""Which values make sense, alone and together; every problem names its CLI key."""

import math
import re
from typing import Any

from sae_cli.config.convert import flat
from sae_cli.config.schema import Config
from sae_cli.errors import UserError, suggest

PRECISIONS = ("float32", "bfloat16", "float16")

ALLOWED: dict[str, tuple[str, ...]] = {
    "model.dtype": PRECISIONS,
    "model.processing": ("raw", "folded"),
    "source.kind": ("language_model", "vectors", "three_features", "features"),
    "cache.dtype": PRECISIONS,
    "sae.nonlinearity": ("relu", "prolu_relu", "prolu_ste"),
    "sae.decoder_bias_init": ("mean", "zero"),
    "sparsity.kind": ("l1", "sqrt_l1"),
    "orthogonality.kind": ("none", "all_pairs", "nearest", "chunked"),
    "orthogonality.phi": ("abs", "square", "power", "exponential", "logistic", "hinge", "barrier"),
    "train.precision": ("bf16", "fp32"),
    "tracker.kind": ("wandb", "jsonl"),
    "tracker.mode": ("auto", "online", "offline"),
}
"""Keys with a fixed set of values. A test holds them equal to the registries, which need torch to import."""

COUNT, AMOUNT, SHARE, POSITIVE = "[1, inf)", "[0, inf)", "[0, 1]", "(0, inf)"

RANGES: dict[str, str] = {
    "model.context": "[2, inf)",
    "model.batch": COUNT,
    "text.validation": "(0, 1)",
    "text.max_documents": AMOUNT,
    "source.features": AMOUNT,
    "source.width": AMOUNT,
    "source.probability": "(0, 1]",
    "source.rare": "(0, 1]",
    "source.zipf": AMOUNT,
    "source.cooccurrence": SHARE,
    "source.magnitude": POSITIVE,
    "source.magnitude_spread": SHARE,
    "source.noise": AMOUNT,
    "source.seed": AMOUNT,
    "cache.tokens": AMOUNT,
    "cache.validation_tokens": COUNT,
    "cache.shuffle_bytes": COUNT,
    "cache.shard_bytes": COUNT,
    "cache.mix_bytes": COUNT,
    "cache.seed": AMOUNT,
    "sae.latents": COUNT,
    "sae.encoder_scale": POSITIVE,
    "sae.bias_init": "(-inf, inf)",
    "sparsity.weight": AMOUNT,
    "sparsity.warmup": SHARE,
    "sparsity.epsilon": POSITIVE,
    "orthogonality.weight": "(-inf, inf)",
    "orthogonality.exponent": POSITIVE,
    "orthogonality.threshold": "[-1, 1)",
    "orthogonality.chunk": "[2, inf)",
    "orthogonality.tile": COUNT,
    "orthogonality.every": COUNT,
    "orthogonality.warmup": SHARE,
    "train.tokens": COUNT,
    "train.batch": COUNT,
    "train.lr": POSITIVE,
    "train.beta1": "[0, 1)",
    "train.beta2": "[0, 1)",
    "train.warmup": SHARE,
    "train.decay": SHARE,
    "train.final_lr": SHARE,
    "train.clip": AMOUNT,
    "train.data_seed": AMOUNT,
    "train.resample_at": "(0, 1)",
    "train.resample_rows": COUNT,
    "train.dead_after": COUNT,
    "train.log_every": COUNT,
    "train.checkpoint_every": AMOUNT,
    "eval.rows": AMOUNT,
    "eval.contexts": AMOUNT,
    "eval.batch": COUNT,
    "seed": AMOUNT,
}
"""Interval of each number; of each element for a list."""


def check(config: Config) -> None:
    """Raise one UserError that lists every problem, joined by `; `."""
    problems = value_problems(config) + combination_problems(config)
    if problems:
        raise UserError("; ".join(problems))


def value_problems(config: Config) -> list[str]:
    """Return what is wrong with single values: not among the allowed ones, or out of range."""
    values = flat(config)
    problems = []
    for key, allowed in ALLOWED.items():
        value = str(values[key])
        if value not in allowed:
            problems.append(f"{key}={value} is not one of {', '.join(allowed)}.{suggest(value, allowed)}")
    for key, interval in RANGES.items():
        entry = values[key]
        for number in entry if isinstance(entry, list) else [entry]:
            if not _inside(number, interval):
                problems.append(f"{key}={entry} is outside {interval}")
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", config.device):
        problems.append(f"device={config.device} is not one of auto, cpu, cuda, cuda:N")
    if not re.fullmatch(r"\w[\w.+@=-]*(/\w[\w.+@=-]*)*", config.name):
        problems.append(f"name={config.name!r} is not a folder name (letters, digits, . _ - and / between parts)")
    return problems


def combination_problems(config: Config) -> list[str]:
    """Return what is wrong with values taken together."""
    source, text, orthogonality, train = config.source, config.text, config.orthogonality, config.train
    rules = [
        (
            source.kind == "language_model" and bool(text.path) == bool(text.dataset),
            "give one of text.path and text.dataset, and leave the other empty",
        ),
        (source.kind == "vectors" and not source.path, "source.path is empty: source=vectors needs a file or folder"),
        (
            source.kind != "vectors" and config.cache.tokens == 0,
            "cache.tokens=0 means every row and works with source=vectors only",
        ),
        (
            source.kind != "language_model" and bool(config.cache.hooks),
            "cache.hooks is for source=language_model only",
        ),
        (
            source.kind == "features" and not (source.features > 0 and source.width > 0),
            "source=features needs source.features and source.width above 0",
        ),
        (
            source.kind == "features" and source.orthogonal and source.features > source.width,
            f"source.orthogonal=true needs source.features <= source.width ({source.features} > {source.width})",
        ),
        (
            orthogonality.kind == "none" and orthogonality.weight != 0,
            f"orthogonality.weight={orthogonality.weight} needs a penalty: add orthogonality=chunked (or nearest, "
            "all_pairs)",
        ),
        (
            orthogonality.weight < 0,
            f"orthogonality.weight={orthogonality.weight} is negative: that needs a cap and is not supported",
        ),
        (
            orthogonality.kind != "none" and config.sae.latents < 2,
            f"orthogonality={orthogonality.kind} needs sae.latents of at least 2",
        ),
        (
            train.batch > train.tokens,
            f"train.batch={train.batch} is above train.tokens={train.tokens}: not one step would run",
        ),
        (
            train.warmup + train.decay > 1,
            f"train.warmup={train.warmup} and train.decay={train.decay} are above 1 together",
        ),
    ]
    return [text for wrong, text in rules if wrong]


def _inside(number: Any, interval: str) -> bool:
    low, high = (float(part) for part in interval[1:-1].split(","))
    above = number > low if interval[0] == "(" else number >= low
    below = number < high if interval[-1] == ")" else number <= high
    return math.isfinite(number) and above and below
