"""Which values make sense, alone and together; every problem names its CLI key."""

import math
import re
from collections.abc import Iterator
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
    "sae.nonlinearity": (
        *("relu", "prolu_relu", "prolu_ste", "prolu_mixed", "prolu_hybrid", "trec", "tlin", "jumprelu", "topk"),
        *("batchtopk", "gated"),
    ),
    "sae.ste": ("step", "window", "clamp_0_1", "clamp_1_1", "one", "exp"),
    "sae.decoder_norm": ("unit", "free"),
    "sae.decoder_init": ("random", "data"),
    "sae.decoder_bias_init": ("mean", "zero"),
    "sparsity.kind": ("none", "l1", "sqrt_l1", "lp", "tanh", "l0"),
    "orthogonality.kind": ("none", "all_pairs", "nearest", "chunked"),
    "orthogonality.phi": ("abs", "square", "power", "exponential", "logistic", "hinge", "barrier"),
    "orthogonality.rows": ("all", "active", "alive"),
    "train.precision": ("bf16", "fp32"),
    "tracker.kind": ("wandb", "jsonl"),
    "tracker.mode": ("auto", "online", "offline"),
}
"""Keys with a fixed set of values. A test holds them equal to the registries, which need torch to import."""

RANGES: dict[str, str] = {
    "(-inf, inf)": "sae.bias_init orthogonality.weight",
    "[0, inf)": "text.max_documents source.features source.width source.zipf source.noise source.seed cache.tokens "
    "cache.seed sae.auxk_weight sae.preact_weight sparsity.weight sparsity.target_l0 train.clip train.data_seed "
    "train.checkpoint_every eval.rows eval.contexts seed",
    "(0, inf)": "source.magnitude sae.encoder_scale sae.theta sae.bandwidth sparsity.epsilon sparsity.scale "
    "sparsity.bandwidth orthogonality.exponent train.lr",
    "[1, inf)": "model.batch cache.validation_tokens cache.shuffle_bytes cache.shard_bytes cache.mix_bytes sae.latents "
    "sae.grow sae.k sae.auxk_latents orthogonality.tile orthogonality.every train.tokens train.batch "
    "train.resample_rows train.dead_after train.log_every eval.batch",
    "[2, inf)": "model.context orthogonality.chunk",
    "[0, 1]": "source.cooccurrence source.magnitude_spread sae.alpha_m sae.alpha_b sparsity.warmup "
    "orthogonality.warmup train.warmup train.decay train.final_lr",
    "[0, 1)": "train.beta1 train.beta2",
    "(0, 1]": "source.probability source.rare sparsity.exponent",
    "(0, 1)": "text.validation sae.prefixes sparsity.target_rate train.resample_at",
    "[-1, 1)": "orthogonality.threshold",
}
"""Which numbers lie in which interval; for a list, each element."""


def check(config: Config) -> None:
    """Raise one UserError that lists every problem, joined by `; `."""
    problems = [*value_problems(config), *combination_problems(config)]
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
    for interval, names in RANGES.items():
        for key in names.split():
            numbers = values[key] if isinstance(values[key], list) else [values[key]]
            if not all(_inside(number, interval) for number in numbers):
                problems.append(f"{key}={values[key]} is outside {interval}")
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", config.device):
        problems.append(f"device={config.device} is not one of auto, cpu, cuda, cuda:N")
    if not re.fullmatch(r"\w[\w.+@=-]*(/\w[\w.+@=-]*)*", config.name):
        problems.append(f"name={config.name!r} is not a folder name (letters, digits, . _ - and / between parts)")
    return problems


def combination_problems(config: Config) -> Iterator[str]:
    """Yield what is wrong with values taken together."""
    source, text, penalty, train = config.source, config.text, config.orthogonality, config.train
    gamma = f"orthogonality.weight={penalty.weight}"
    if source.kind == "language_model" and bool(text.path) == bool(text.dataset):
        yield "give one of text.path and text.dataset, and leave the other empty"
    if source.kind == "vectors" and not source.path:
        yield "source.path is empty: source=vectors needs a file or folder"
    if source.kind != "vectors" and config.cache.tokens == 0:
        yield "cache.tokens=0 means every row and works with source=vectors only"
    if source.kind != "language_model" and config.cache.hooks:
        yield "cache.hooks is for source=language_model only"
    if source.kind == "features" and not (source.features and source.width):
        yield "source=features needs source.features and source.width above 0"
    if source.kind == "features" and source.orthogonal and source.features > source.width:
        yield f"source.orthogonal=true needs source.features={source.features} <= source.width={source.width}"
    if penalty.kind == "none" and penalty.weight != 0:
        yield f"{gamma} needs a penalty: add orthogonality=chunked (or nearest, all_pairs)"
    if penalty.weight < 0:
        yield f"{gamma} is negative: that needs a cap and is not supported"
    if penalty.kind != "none" and config.sae.latents < 2:
        yield f"orthogonality={penalty.kind} needs sae.latents of at least 2"
    yield from grow_problems(config)
    if train.batch > train.tokens:
        yield f"train.batch={train.batch} is above train.tokens={train.tokens}: not one step would run"
    if train.warmup + train.decay > 1:
        yield f"train.warmup={train.warmup} and train.decay={train.decay} are above 1 together"


def grow_problems(config: Config) -> Iterator[str]:
    """Yield why the latents cannot be trained in stages."""
    sae, steps = config.sae, config.train.tokens // max(config.train.batch, 1)
    sizes = f"sae.grow={sae.grow}"
    if sae.grow and sum(sae.grow) != sae.latents:
        yield f"{sizes} adds up to {sum(sae.grow)}, not to sae.latents={sae.latents}: set sae.latents={sum(sae.grow)}"
    if sae.grow and sae.nonlinearity == "topk":
        yield f"{sizes} does not go with topk (two TopKs together are not one): use sae.nonlinearity=batchtopk"
    if sae.grow and sae.prefixes:
        yield f"{sizes} does not go with sae.prefixes={sae.prefixes}: leave one of them empty"
    if sae.grow and steps < len(sae.grow):
        yield f"{sizes} has more stages than steps ({steps}): raise train.tokens or lower train.batch"


def _inside(number: Any, interval: str) -> bool:
    low, high = (float(part) for part in interval[1:-1].split(","))
    above = number > low if interval[0] == "(" else number >= low
    below = number < high if interval[-1] == ")" else number <= high
    return math.isfinite(number) and above and below
