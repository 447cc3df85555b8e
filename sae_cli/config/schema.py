"""The configuration as dataclasses; each field's docstring is its only documentation.

`sae config keys`, the key reference in the docs and the shell completion are generated from this file, so a
docstring states the unit, the values that are allowed and the value that switches the thing off.
"""

from dataclasses import dataclass, field

from omegaconf import MISSING

from sae_cli.config.schema_data import CacheConfig, ModelConfig, SourceConfig, TextConfig

SCHEMA_VERSION = 1


@dataclass
class SAEConfig:
    """The dictionary."""

    nonlinearity: str = MISSING
    """relu | prolu_relu | prolu_ste | prolu_mixed | prolu_hybrid | trec | tlin | jumprelu | topk | batchtopk |
    gated."""
    latents: int = 1024
    """Number of latents F."""
    grow: list[int] = field(default_factory=list)
    """Sizes of batches of latents that are trained one after the other, such as [1024,1024,2048]; their sum is F. Each
    has an equal share of the steps (shares of training are of its own), is then frozen, and the next reconstructs what
    is left; sae.k and sparsity.target_l0 are split by size. Empty: off."""
    k: int = 32
    """topk, batchtopk: latents that fire per row (batchtopk: on average). Per member."""
    prefixes: list[float] = field(default_factory=list)
    """Matryoshka: shares of F whose first latents must reconstruct x by themselves, such as [0.0625, 0.25]; the whole
    always counts too. Empty: off."""
    input_norm: str = "scalar"
    """scalar: one factor brings the data to E||x||^2 = D | row: each x is brought to norm sqrt(D), and x_hat back."""
    encoder_scale: float = 0.1
    """Encoder rows start as this multiple of the unit decoder rows."""
    bias_init: float = 0.0
    """Initial encoder bias of every latent, in units of the scaled input (E||x||^2 = D). Per member."""
    decoder_init: str = "random"
    """random: directions uniform on the sphere | data: inputs less the decoder bias, drawn as in resampling."""
    decoder_bias_init: str = "mean"
    """mean: the data mean | zero."""
    freeze_decoder: bool = False
    """Directions stay where they start, all else learns: the control that says what trained directions are worth."""
    decoder_norm: str = "unit"
    """unit: directions have norm 1 after every step | free: penalties weigh each latent by its direction's norm."""
    alpha_m: float = 0.0
    """prolu_mixed, prolu_hybrid: share of the straight-through gradient that reaches the pre-activation. In [0, 1]."""
    alpha_b: float = 0.0
    """prolu_mixed, prolu_hybrid: share of the straight-through gradient that reaches the bias. In [0, 1]."""
    ste: str = "step"
    """ProLU's stand-in T'(x) for the threshold's derivative at x = m + b: step | window | clamp_0_1 | clamp_1_1 | one |
    exp."""
    theta: float = 0.1
    """Threshold of trec and tlin; initial threshold of jumprelu."""
    bandwidth: float = 0.1
    """jumprelu: width eps of the rectangle kernel through which thresholds get gradients."""
    auxk_weight: float = 0.0
    """Weight of the AuxK loss: dead latents reconstruct the residual (arXiv 2406.04093, 1/32 there); 0: off."""
    auxk_latents: int = 512
    """Dead latents that the AuxK loss uses per row."""
    preact_weight: float = 0.0
    """Weight of the loss on dead latents' distance from firing (3e-6 in Anthropic's 2025 update); 0: off."""


@dataclass
class SparsityConfig:
    """The sparsity penalty: sum over latents, mean over the batch, beside a squared error summed over D."""

    kind: str = MISSING
    """none | l1 | sqrt_l1 | lp | tanh | l0."""
    weight: float = 1.0
    """lambda, in the sum-over-D convention of ProLU's post and SAELens; 0: off. Per member."""
    warmup: float = 0.05
    """Share of training steps over which the weight rises linearly from 0; 0: none. Per member."""
    epsilon: float = 1e-6
    """Added under the root of sqrt_l1 and lp."""
    exponent: float = 0.5
    """Exponent p of lp."""
    scale: float = 4.0
    """Slope c of tanh(c f)."""
    bandwidth: float = 0.1
    """l0: width eps of the rectangle kernel through which biases and thresholds get gradients."""
    target_l0: float = 0.0
    """L0 that lambda is moved to reach after its warm-up; 0: lambda stays. Per member."""
    target_rate: float = 1e-4
    """Largest relative change of lambda per step under target_l0."""


@dataclass
class OrthogonalityConfig:
    """The penalty on non-orthogonal directions, multiplied by gamma * D."""

    kind: str = MISSING
    """none | all_pairs | gram | nearest | unique_nearest | mixed_max | chunked | cells | neighbours | rica |
    decomposable. The last two and gram have no phi, signed, cap or (but for decomposable) rows."""
    weight: float = 0.0
    """gamma; 0: off; below 0 it rewards what phi punishes and needs a cap. Per member."""
    phi: str = "square"
    """Function of the cosine c: abs | square | power | exponential | logistic | hinge | barrier."""
    exponent: float = 2.0
    """Exponent of phi=power; rate k of phi=exponential; slope of phi=logistic."""
    threshold: float | None = None
    """Cosine from which phi=hinge counts; centre of phi=logistic. null: the median nearest cosine of random ones."""
    signed: bool = True
    """Only positive cosines count; false: the absolute cosine."""
    cap: float = 1.0
    """Cosine beyond which phi is constant; 1: none. Needed where weight < 0, which would breed duplicates."""
    rows: str = "all"
    """Which directions are penalised, against all: all | active (fired in this batch) | alive (fired in the last
    train.dead_after rows: Adam moves a latent without other gradients at full speed however small gamma is)."""
    chunk: int = 8192
    """chunked, cells: directions per part at most (OrtSAE's choice)."""
    refresh: int = 10
    """cells, neighbours, unique_nearest, rica: uses of the penalty from one exact search to the next (rica: inversion
    of the covariance; none with search_rows where all directions are one part). Directions that the penalty drives
    apart soon have other neighbours: see `neighbour_recall`."""
    neighbours: int = 8
    """neighbours: nearest others k of each direction, all penalised; cells with search_rows: those that are kept."""
    search_rows: int = 0
    """cells, neighbours: directions that are searched for per use, in turn, at search_rows * chunk (neighbours: F) * D
    operations, so that all have had a turn after F / search_rows uses; 0: all, cells at each use, neighbours at a
    refresh."""
    assign_limit: int = 2048
    """unique_nearest: latents up to which the assignment is exact, at F^3 operations and F^2 numbers."""
    greedy: bool = False
    """unique_nearest: accept that above assign_limit pairs are taken in descending cosine, no optimum."""
    meta_share: float = 0.0625
    """decomposable: latents of the meta-SAE as a share of the directions."""
    meta_k: int = 4
    """decomposable: latents of the meta-SAE that fire per direction."""
    meta_scale: float = 0.5
    """decomposable: error s of a unit direction's reconstruction at which it counts 1/e."""
    meta_lr: float = 1e-3
    """decomposable: learning rate of the meta-SAE's Adam."""
    tile: int = 1024
    """Rows and columns of the cosine matrix that exist at one time; bounds memory at tile^2 (all_pairs: tile * F)."""
    every: int = 1
    """Apply the penalty on every s-th step with weight s * gamma."""
    warmup: float = 0.0
    """Share of training steps over which the weight rises linearly from 0; 0: none. Per member."""


@dataclass
class TrainConfig:
    """Optimisation."""

    tokens: int = 1_000_000
    """Rows seen in training; a cache is read in several epochs if it is smaller."""
    batch: int = 2048
    """Rows per step B."""
    lr: float = 1e-3
    """Adam's learning rate after warm-up. Per member."""
    beta1: float = 0.9
    """Adam's decay of the first moment."""
    beta2: float = 0.999
    """Adam's decay of the second moment."""
    warmup: float = 0.02
    """Share of steps over which the learning rate rises linearly; 0: none. Per member."""
    decay: float = 0.2
    """Share of steps over which the learning rate falls linearly to final_lr; 0: none."""
    decay_end: float = 1.0
    """Share of training at which the fall ends; the learning rate stays at final_lr from there."""
    final_lr: float = 0.0
    """Learning rate after the fall as a share of lr."""
    clip: float = 0.0
    """Largest gradient norm of a member; 0: no clipping."""
    precision: str = "bf16"
    """bf16: autocast with fp32 master weights | fp32."""
    memory_bytes: int = 0
    """Bytes that the latents of a step may take, beside weights: a batch is then processed in pieces of rows, whose
    gradients are summed. Changes memory, not results, but for rounding; at least one row is taken. 0: no limit."""
    parallel: str = "rows"
    """What the processes of torchrun share out. rows: each has all latents and its rows of every batch | latents: each
    has its latents and all rows. Same results but for rounding; nothing for one process."""
    sparse: str = "auto"
    """Products over latents that fire only, where gradients vanish elsewhere. auto: while few fire | dense |
    sparse: always. Same results but for rounding."""
    tf32: bool = False
    """Allow TF32 products on CUDA under precision=fp32."""
    deterministic: bool = False
    """Use torch's deterministic algorithms (slower on CUDA; the CPU is deterministic either way)."""
    data_seed: int = 0
    """Seed of the order of batches and of random partitions; shared by all members of a stack."""
    resample_at: list[float] = field(default_factory=list)
    """Shares of training at which dead latents are resampled, such as [0.25, 0.5]; empty: never."""
    resample_rows: int = 65_536
    """Inputs from which replacement directions are drawn, with probability proportional to squared error."""
    resample_warmup: float = 0.0
    """Share of steps over which the learning rate rises linearly again after each resampling; 0: none."""
    dead_after: int = 200_000
    """A latent is dead after this many rows without firing."""
    dead_frequency: float = 0.0
    """Resampling takes latents that fire on less than this share of the last dead_after rows; 0: the dead."""
    log_every: int = 50
    """Steps between log lines."""
    checkpoint_every: int = 1000
    """Steps between checkpoints; 0: only at the end and when interrupted."""


@dataclass
class TrackerConfig:
    """Where metrics go; metrics.jsonl is written in every case."""

    kind: str = MISSING
    """wandb: Weights & Biases beside the JSONL file | jsonl: the file alone."""
    project: str = "sae"
    """Weights & Biases project."""
    entity: str = ""
    """Weights & Biases user or team; empty: the account's default."""
    mode: str = "auto"
    """auto: online when a key is at hand, else offline | online | offline."""
    group: str = ""
    """Weights & Biases group; empty: the run folder's name (`name`)."""


@dataclass
class EvalConfig:
    """Evaluation of finished runs."""

    rows: int = 16_384
    """Validation rows for reconstruction metrics; 0: all of the validation part."""
    contexts: int = 32
    """Validation contexts for cross-entropy with the SAE spliced in; 0: no cross-entropy."""
    batch: int = 4096
    """Rows per evaluation step at most; changes memory, not results."""
    memory_bytes: int = 1_073_741_824
    """Bytes that rows, latents, cosines and logits of an evaluation step may take, beside weights and the language
    model's own; at least one row and one context are taken. Changes memory, not results."""
    composition: bool = False
    """Train a small SAE on the directions and report how far they are sums of common parts (section composition)."""
    words: int = 0
    """source=language_model: words whose first letters are probed, for absorption (section first_letter); 0: off."""
    probe_rows: int = 0
    """source=language_model: rows per task of sparse probing (section probing), 120 at least; 0: off."""


@dataclass
class Config:
    """One point: everything that decides what a run is, and where it goes."""

    model: ModelConfig = field(default_factory=ModelConfig)
    text: TextConfig = field(default_factory=TextConfig)
    source: SourceConfig = field(default_factory=SourceConfig)
    cache: CacheConfig = field(default_factory=CacheConfig)
    sae: SAEConfig = field(default_factory=SAEConfig)
    sparsity: SparsityConfig = field(default_factory=SparsityConfig)
    orthogonality: OrthogonalityConfig = field(default_factory=OrthogonalityConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    tracker: TrackerConfig = field(default_factory=TrackerConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    name: str = "default"
    """Folder of runs under runs_dir; a sweep's runs share it."""
    seed: int = 0
    """Seed of a member's initial weights and of its resampling. Per member."""
    device: str = "auto"
    """auto: CUDA if there is one | cpu | cuda | cuda:N."""
    runs_dir: str = "runs"
    """Folder of all runs."""


PER_MEMBER = (
    "seed",
    "sae.bias_init",
    "sae.k",
    "sparsity.target_l0",
    "sparsity.weight",
    "sparsity.warmup",
    "orthogonality.weight",
    "orthogonality.warmup",
    "train.lr",
    "train.warmup",
)
"""Keys that may differ between the members of one stack."""

NOT_SEMANTIC = ("name", "device", "runs_dir", "tracker", "eval", "cache", "model", "text", "source")
"""Keys that do not enter the run id; model, text, source and cache enter through the source's fingerprint."""
