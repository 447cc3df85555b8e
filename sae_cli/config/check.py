"""Which values make sense, alone and together; every problem names its CLI key."""

import math
import re
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

from sae_cli.config.convert import flat
from sae_cli.config.schema import Config, SourceConfig
from sae_cli.errors import UserError, suggest

PRECISIONS = ("float32", "bfloat16", "float16")

SIZED = ("chanin", "sharkey", "tms", "tree", "sanity", "synthbench", "hierarchical")
"""Synthetic sources beside three_features and features."""
FORESTS = ("chanin", "tree", "hierarchical", "synthbench")

ALLOWED: dict[str, tuple[str, ...]] = {
    "model.dtype": PRECISIONS,
    "model.processing": ("raw", "folded"),
    "source.kind": ("language_model", "vectors", "three_features", "features", *SIZED),
    "source.law": ("zipf", "geometric", "log_uniform"),
    "source.strength": ("uniform", "lognormal", "normal"),
    "cache.dtype": PRECISIONS,
    "sae.nonlinearity": (
        *("relu", "prolu_relu", "prolu_ste", "prolu_mixed", "prolu_hybrid", "trec", "tlin", "jumprelu", "topk"),
        *("batchtopk", "gated"),
    ),
    "sae.ste": ("step", "window", "clamp_0_1", "clamp_1_1", "one", "exp"),
    "sae.decoder_norm": ("unit", "free"),
    "sae.input_norm": ("scalar", "row"),
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

COUNTED = ("topk", "batchtopk")
"""Nonlinearities whose L0 is sae.k."""
FIXED_GATE = ("trec", "tlin")
"""Nonlinearities that learn neither a bias nor a threshold."""
BLENDED = ("prolu_mixed", "prolu_hybrid")
"""Nonlinearities that read sae.alpha_m and sae.alpha_b."""
OTHER_PENALTIES = ("sqrt_l1", "lp", "tanh", "l0")

RANGES: dict[str, str] = {
    "(-inf, inf)": "sae.bias_init orthogonality.weight",
    "[0, inf)": "text.max_documents source.features source.width source.zipf source.noise source.seed source.l0 "
    "source.trees source.depth cache.tokens cache.seed sae.auxk_weight sae.preact_weight sparsity.weight "
    "sparsity.target_l0 train.clip train.data_seed train.checkpoint_every eval.rows eval.contexts seed",
    "(0, inf)": "source.magnitude sae.encoder_scale sae.theta sae.bandwidth sparsity.epsilon sparsity.scale "
    "sparsity.bandwidth orthogonality.exponent train.lr",
    "[1, inf)": "model.batch source.rank source.branching source.sets cache.validation_tokens cache.shuffle_bytes "
    "cache.shard_bytes cache.mix_bytes sae.latents sae.k sae.auxk_latents orthogonality.tile orthogonality.every "
    "train.tokens train.batch train.resample_rows train.dead_after train.log_every eval.batch",
    "[2, inf)": "model.context orthogonality.chunk",
    "[0, 1]": "source.cooccurrence source.magnitude_spread source.child_probability source.probability_min "
    "sae.alpha_m sae.alpha_b sparsity.warmup orthogonality.warmup train.warmup train.decay train.final_lr "
    "train.resample_warmup",
    "[0, 1)": "source.correlation train.beta1 train.beta2 train.dead_frequency",
    "(0, 1]": "source.probability source.rare source.decay sparsity.exponent train.decay_end",
    "(0, 1)": "text.validation sae.prefixes sparsity.target_rate train.resample_at",
    "[-1, 1)": "orthogonality.threshold",
}
"""Which numbers lie in which interval; for a list, each element."""


def check(config: Config) -> None:
    """Raise one UserError that lists every problem, joined by `; `."""
    problems = [*value_problems(config), *combination_problems(config), *dictionary_problems(config)]
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
    if source.kind in ("features", *SIZED):
        yield from synthetic_problems(source)
    if penalty.kind == "none" and penalty.weight != 0:
        yield f"{gamma} needs a penalty: add orthogonality=chunked (or nearest, all_pairs)"
    if penalty.weight < 0:
        yield f"{gamma} is negative: that needs a cap and is not supported"
    if penalty.kind != "none" and config.sae.latents < 2:
        yield f"orthogonality={penalty.kind} needs sae.latents of at least 2"
    if train.batch > train.tokens:
        yield f"train.batch={train.batch} is above train.tokens={train.tokens}: not one step would run"
    if train.warmup + train.decay > train.decay_end:
        yield f"train.warmup={train.warmup} and train.decay={train.decay} are above train.decay_end={train.decay_end}"


def synthetic_problems(source: SourceConfig) -> Iterator[str]:
    """Yield what is wrong with the sizes and probabilities of a synthetic source."""
    kind, features, width = source.kind, source.features, source.width
    if not (features and width):
        yield f"source={kind} needs source.features and source.width above 0"
    if source.orthogonal and kind not in ("tms", "synthbench") and features > width:
        yield f"source.orthogonal=true needs source.features={features} <= source.width={width}"
    if source.probability_min > source.probability:
        yield f"source.probability_min={source.probability_min} is above source.probability={source.probability}"
    if source.law == "log_uniform" and source.probability_min == 0:
        yield "source.law=log_uniform needs source.probability_min above 0"
    if source.l0 and (kind == "tms" or source.l0 > features):
        yield f"source.l0={source.l0} does not go with source={kind} of {features} features"
    if source.cooccurrence and kind != "features":
        yield f"source.cooccurrence={source.cooccurrence} is for source=three_features and source=features"
    if source.correlation and kind not in ("sharkey", "hierarchical", "synthbench"):
        yield f"source.correlation={source.correlation} is for source=sharkey, hierarchical and synthbench"
    in_trees = source.trees * sum(source.branching**level for level in range(source.depth + 1))
    if source.trees and kind not in FORESTS:
        yield f"source.trees={source.trees} is for source={', '.join(FORESTS)}"
    elif in_trees > features:
        yield f"{source.trees} trees of depth {source.depth} have {in_trees} features, source.features={features}"
    if source.exclusive and kind in ("chanin", "tree", "hierarchical"):
        together = source.branching * source.child_probability
        if together > 1 + 1e-9:
            yield f"source.exclusive=true: source.branching * source.child_probability = {together:g} is above 1"
    if kind == "tms" and features and width:
        yield from _set_problems(source)


def _set_problems(source: SourceConfig) -> Iterator[str]:
    """tms: a set is orthonormal, an antipodal pair or a polygon in its share of the dimensions."""
    size, room = source.features // source.sets, source.width // source.sets
    if source.features % source.sets:
        yield f"source.features={source.features} is not a multiple of source.sets={source.sets}"
    elif not (room >= size or (room, size) == (1, 2) or room == 2):
        yield (
            f"source=tms cannot place sets of {size} features in {room} of source.width={source.width} dimensions: "
            f"set source.width={2 * source.sets} (polygons) or {size * source.sets} (orthonormal)"
        )


def dictionary_problems(config: Config) -> Iterator[str]:
    """Yield settings of the nonlinearity, sparsity and dead latents that exclude each other or have no effect."""
    sae, sparsity = config.sae, config.sparsity
    name = f"sae.nonlinearity={sae.nonlinearity}"
    counted, fixed = sae.nonlinearity in COUNTED, sae.nonlinearity in FIXED_GATE
    blended = sae.nonlinearity in BLENDED
    if counted and sparsity.weight != 0:
        yield f"{name} fires sae.k latents, so sparsity.weight={sparsity.weight} must be 0: add sparsity=none"
    elif sparsity.kind == "none" and sparsity.weight != 0:
        yield f"sparsity.weight={sparsity.weight} needs a penalty: add sparsity=l1 (or {', '.join(OTHER_PENALTIES)})"
    if counted and sae.k > sae.latents:
        yield f"sae.k={sae.k} is above sae.latents={sae.latents}: lower sae.k"
    if counted and sae.preact_weight:
        yield f"sae.preact_weight has no use with {name}, whose latents compete for places: use sae.auxk_weight"
    if fixed and sparsity.kind == "l0" and sparsity.weight != 0:
        yield f"sparsity=l0 moves biases and thresholds, and {name} learns none: use sparsity=l1, or sae=jumprelu"
    if fixed and sae.bias_init != 0:
        yield f"sae.bias_init={sae.bias_init} has no effect: {name} has no encoder bias; set sae.theta"
    if sparsity.target_l0 and (counted or sparsity.weight == 0):
        fix = f"{name} reaches it with sae.k" if counted else "sparsity.weight=0 cannot be moved; start it above 0"
        yield f"sparsity.target_l0={sparsity.target_l0}: {fix}"
    if sparsity.target_l0 > sae.latents:
        yield f"sparsity.target_l0={sparsity.target_l0} is above sae.latents={sae.latents}"
    for key in ("alpha_m", "alpha_b"):
        if getattr(sae, key) and not blended:
            yield f"sae.{key}={getattr(sae, key)} has no effect with {name}: use sae=prolu_mixed or sae=prolu_hybrid"
    straight = sae.nonlinearity == "prolu_ste" or (blended and (sae.alpha_m or sae.alpha_b))
    if sae.ste != "step" and not straight:
        yield f"sae.ste={sae.ste} has no effect with {name}: use sae=prolu_ste, or sae=prolu_mixed with its alphas"
    if any(left >= right for left, right in pairwise(sae.prefixes)):
        yield f"sae.prefixes={sae.prefixes} must increase"


def _inside(number: Any, interval: str) -> bool:
    low, high = (float(part) for part in interval[1:-1].split(","))
    above = number > low if interval[0] == "(" else number >= low
    below = number < high if interval[-1] == ")" else number <= high
    return math.isfinite(number) and above and below
