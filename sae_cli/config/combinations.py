"""Which values make no sense together; every problem names its CLI keys and the fix."""

from collections.abc import Iterator
from itertools import pairwise

from sae_cli.config.schema import Config, OrthogonalityConfig, SourceConfig

SIZED = ("chanin", "sharkey", "tms", "tree", "sanity", "synthbench", "hierarchical")
"""Synthetic sources beside three_features and features."""
FORESTS = ("chanin", "tree", "hierarchical", "synthbench")

COUNTED = ("topk", "batchtopk")
"""Nonlinearities whose L0 is sae.k."""
FIXED_GATE = ("trec", "tlin")
"""Nonlinearities that learn neither a bias nor a threshold."""
BLENDED = ("prolu_mixed", "prolu_hybrid")
"""Nonlinearities that read sae.alpha_m and sae.alpha_b."""
WIDE_GRADIENT = ("gated", "tlin")
"""Nonlinearities of which more than the sum m + offset > 0 has gradients."""
ONE_SIDED = ("step", "window", "clamp_0_1")
"""Values of sae.ste that are 0 at shut gates."""
OTHER_PENALTIES = ("sqrt_l1", "lp", "tanh", "l0")

SHARDABLE = ("nearest", "neighbours", "chunked")
"""Orthogonality penalties of directions that lie on several ranks."""
WITHOUT_PHI = ("gram", "rica", "decomposable")
"""Orthogonality penalties that are no function of single cosines."""


def combination_problems(config: Config) -> Iterator[str]:
    """Yield what is wrong with values taken together."""
    source, text, train = config.source, config.text, config.train
    if source.kind == "language_model" and bool(text.path) == bool(text.dataset):
        yield "give one of text.path and text.dataset, and leave the other empty"
    if source.kind == "vectors" and not source.path:
        yield "source.path is empty: source=vectors needs a file or folder"
    if source.kind != "vectors" and config.cache.tokens == 0:
        yield "cache.tokens=0 means every row and works with source=vectors only"
    if source.kind != "language_model" and config.cache.hooks:
        yield "cache.hooks is for source=language_model only"
    yield from part_problems(config)
    if source.kind in ("features", *SIZED):
        yield from synthetic_problems(source)
    yield from dictionary_problems(config)
    yield from grow_problems(config)
    yield from penalty_problems(config.orthogonality, config.sae.latents)
    moving = {"sae.grow": config.sae.grow, "train.resample_at": train.resample_at}
    for key, value in (moving | {"orthogonality.weight": config.orthogonality.weight}).items():
        if config.sae.freeze_decoder and value:
            yield f"{key}={value} moves directions, which sae.freeze_decoder=true keeps: leave one of them out"
    if train.parallel == "latents":
        yield from latents_problems(config)
    if train.memory_bytes and config.orthogonality.kind == "rica" and config.orthogonality.weight:
        yield "orthogonality=rica multiplies the whole batch: set train.memory_bytes=0"
    if train.batch > train.tokens:
        yield f"train.batch={train.batch} is above train.tokens={train.tokens}: not one step would run"
    if train.warmup + train.decay > train.decay_end:
        yield f"train.warmup={train.warmup} and train.decay={train.decay} are above train.decay_end={train.decay_end}"


def part_problems(config: Config) -> Iterator[str]:
    """Yield why a cache cannot be cut into parts that workers write on their own."""
    source, cache, model = config.source, config.cache, config.model
    given = f"cache.parts={cache.parts}"
    if cache.parts > 1 and source.kind not in ("language_model", "vectors"):
        yield f"{given} has no use with source={source.kind}, which has no cache"
    elif cache.parts > 1 and not cache.tokens:
        yield f"{given} needs a known number of rows: set cache.tokens above 0"
    elif cache.parts > 1:
        text = source.kind == "language_model"
        rows = model.context - (model.prepend_bos and model.drop_bos) if text else 1
        if cache.parts > (count := -(-cache.tokens // max(1, rows))):
            yield f"{given} is above the {count} {'contexts' if text else 'rows'} of cache.tokens={cache.tokens}"


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
    beyond = sae.nonlinearity in WIDE_GRADIENT or (straight and sae.ste not in ONE_SIDED) or sae.prefixes
    if config.train.sparse == "sparse" and (beyond or (counted and sparsity.kind == "l0")):
        yield f"train.sparse=sparse: {name}, sae.ste, sae.prefixes or sparsity=l0 need dense products: set it to auto"
    if any(left >= right for left, right in pairwise(sae.prefixes)):
        yield f"sae.prefixes={sae.prefixes} must increase"


def penalty_problems(penalty: OrthogonalityConfig, latents: int) -> Iterator[str]:
    """Yield what is wrong with an orthogonality penalty on this many latents."""
    kind, gamma = f"orthogonality={penalty.kind}", f"orthogonality.weight={penalty.weight}"
    if penalty.kind == "none":
        if penalty.weight != 0:
            yield f"{gamma} needs a penalty: add orthogonality=chunked (or nearest, all_pairs)"
        return
    if latents < 2:
        yield f"{kind} needs sae.latents of at least 2"
    if penalty.kind in WITHOUT_PHI and (penalty.weight < 0 or penalty.cap < 1):
        yield f"{kind} knows no cap (orthogonality.cap={penalty.cap}), so {gamma} must be at least 0, and the cap 1"
    elif penalty.weight < 0 and penalty.cap == 1:
        yield f"{gamma} is negative: that needs orthogonality.cap below 1, the cosine up to which directions are drawn"
    if penalty.kind in ("gram", "rica") and penalty.rows != "all":
        yield f"{kind} sees all directions at once: orthogonality.rows={penalty.rows} must be all"
    if penalty.kind == "unique_nearest" and latents > penalty.assign_limit and not penalty.greedy:
        yield (
            f"sae.latents={latents} is above orthogonality.assign_limit={penalty.assign_limit}: an exact assignment "
            "would take hours; set orthogonality.greedy=true"
        )
    if penalty.kind == "neighbours" and penalty.neighbours >= latents:
        yield f"orthogonality.neighbours={penalty.neighbours} must be below sae.latents={latents}"
    if penalty.kind == "decomposable" and penalty.meta_k > (count := max(1, round(penalty.meta_share * latents))):
        yield f"orthogonality.meta_k={penalty.meta_k} is above the {count} latents of the meta-SAE (meta_share)"


def latents_problems(config: Config) -> Iterator[str]:
    """Yield why the latents cannot be shared out to ranks."""
    sae, penalty, way = config.sae, config.orthogonality, "train.parallel=latents"
    if sae.grow:
        yield f"sae.grow={sae.grow} does not go with {way}: set train.parallel=rows"
    if config.train.sparse == "sparse":
        yield f"train.sparse=sparse does not go with {way}, whose products are dense: set train.sparse=auto"
    if penalty.weight and penalty.kind not in SHARDABLE:
        yield f"orthogonality={penalty.kind} needs all directions in one place, and {way}: use {', '.join(SHARDABLE)}"
    elif penalty.weight and penalty.search_rows:
        yield f"orthogonality.search_rows={penalty.search_rows} does not go with {way}: set it to 0"


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
