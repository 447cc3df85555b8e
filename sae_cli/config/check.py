"""Which values make sense, alone and together; every problem names its CLI key."""

import re
from typing import Any

from sae_cli.config.combinations import combination_problems
from sae_cli.config.convert import flat
from sae_cli.config.keys import by_name
from sae_cli.config.schema import Config
from sae_cli.errors import UserError, suggest

PRECISIONS = ("float32", "bfloat16", "float16")

LISTED = ("source.kind", "sae.nonlinearity", "sparsity.kind", "orthogonality.kind")
"""Keys whose docstring begins with their values, `a | b | c.`"""

ALLOWED: dict[str, tuple[str, ...]] = {
    **{key: tuple(by_name()[key].text.split(".")[0].split(" | ")) for key in LISTED},
    "model.dtype": PRECISIONS,
    "model.processing": ("raw", "folded"),
    "source.law": ("zipf", "geometric", "log_uniform"),
    "source.strength": ("uniform", "lognormal", "normal"),
    "cache.dtype": PRECISIONS,
    "sae.ste": ("step", "window", "clamp_0_1", "clamp_1_1", "one", "exp"),
    "sae.decoder_norm": ("unit", "free"),
    "sae.input_norm": ("scalar", "row"),
    "sae.decoder_init": ("random", "data"),
    "sae.decoder_bias_init": ("mean", "zero"),
    "orthogonality.phi": ("abs", "square", "power", "exponential", "logistic", "hinge", "barrier"),
    "orthogonality.rows": ("all", "active", "alive"),
    "train.precision": ("bf16", "fp32"),
    "train.parallel": ("rows", "latents"),
    "train.sparse": ("auto", "dense", "sparse"),
    "tracker.kind": ("wandb", "jsonl"),
    "tracker.mode": ("auto", "online", "offline"),
}
"""Keys with a fixed set of values. A test holds them equal to the registries, which need torch to import."""

RANGES: dict[str, str] = {
    "(-inf, inf)": "sae.bias_init orthogonality.weight",
    "[0, inf)": "text.cut text.max_documents source.features source.width source.zipf source.noise source.seed "
    "source.l0 source.trees source.depth cache.tokens cache.seed sae.auxk_weight sae.preact_weight sparsity.weight "
    "sparsity.target_l0 train.clip train.data_seed train.checkpoint_every train.memory_bytes eval.rows eval.contexts "
    "eval.words eval.probe_rows seed orthogonality.search_rows",
    "(0, inf)": "source.magnitude sae.encoder_scale sae.theta sae.bandwidth sparsity.epsilon sparsity.scale "
    "sparsity.bandwidth orthogonality.exponent orthogonality.meta_scale orthogonality.meta_lr train.lr",
    "[1, inf)": "model.batch source.rank source.branching source.sets cache.validation_tokens cache.shuffle_bytes "
    "cache.shard_bytes cache.mix_bytes cache.parts sae.latents sae.k sae.auxk_latents sae.grow orthogonality.tile "
    "orthogonality.every orthogonality.refresh orthogonality.neighbours orthogonality.assign_limit "
    "orthogonality.meta_k train.tokens train.batch train.resample_rows train.dead_after train.log_every eval.batch "
    "eval.memory_bytes",
    "[2, inf)": "model.context orthogonality.chunk",
    "[0, 1]": "source.cooccurrence source.magnitude_spread source.child_probability source.probability_min "
    "sae.alpha_m sae.alpha_b sparsity.warmup orthogonality.warmup train.warmup train.decay train.final_lr "
    "train.resample_warmup",
    "[0, 1)": "source.correlation train.beta1 train.beta2 train.dead_frequency",
    "(0, 1]": "source.probability source.rare source.decay sparsity.exponent orthogonality.cap "
    "orthogonality.meta_share train.decay_end",
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
            if not all(number is None or _inside(number, interval) for number in numbers):
                problems.append(f"{key}={values[key]} is outside {interval}")
    if problem := device_problem(config.device):
        problems.append(problem)
    if not re.fullmatch(r"\w[\w.+@=-]*(/\w[\w.+@=-]*)*", config.name):
        problems.append(f"name={config.name!r} is not a folder name (letters, digits, . _ - and / between parts)")
    return problems


def device_problem(name: str) -> str:
    """Return why there can be no such device on any machine, "" if there can."""
    known = re.fullmatch(r"auto|cpu|cuda(:\d{1,4})?", name)
    return "" if known else f"device={name} is not one of auto, cpu, cuda, cuda:N"


def _inside(number: Any, interval: str) -> bool:
    low, high = (float(part) for part in interval[1:-1].split(","))
    above = number > low if interval[0] == "(" else number >= low
    below = number < high if interval[-1] == ")" else number <= high
    return above and below and (isinstance(number, float) or abs(number) < 2**63)
