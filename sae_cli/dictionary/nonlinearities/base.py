"""What a nonlinearity is: latents from pre-activations, and what losses and artefacts ask of it."""

from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from sae_cli.config.schema import SAEConfig
from sae_cli.ranks import Ranks
from sae_cli.sparse.operators import Entries

Parameters = Mapping[str, Tensor]
Settings = Sequence[SAEConfig]
"""Settings of each member; only PER_MEMBER keys may differ."""
Find = Callable[[Tensor, Tensor, Sequence[int]], tuple[Entries, Tensor] | None]
"""`Operators.find` with a capacity."""


class Nonlinearity:
    """f = T(m, parameters) of the pre-activation without bias m (K, B, F); f has the shape and dtype of m.

    Parameters are (K, 1, F) fp32 tensors by name: `b_enc`, what is learned beside it, and buffers. They are compared
    in the precision of m, and their gradients are summed in fp32. Subclasses do what the methods here say they do.
    """

    learned: ClassVar[tuple[str, ...]] = ()
    """Parameters (K, F) that are trained beside `b_enc`."""
    buffers: ClassVar[tuple[str, ...]] = ()
    """Parameters (K, F) that are kept with the weights but have no gradient."""
    stored: ClassVar[tuple[str, ...]] = ()
    """Vectors (F,) of an artefact beside `b_enc`."""
    gates: ClassVar[tuple[str, ...]] = ("b_enc",)
    """Parameters that decide where latents fire and that the l0 penalty moves."""
    resampled_norm: ClassVar[float] = 0.2
    """Encoder norm of a resampled latent as a share of the mean norm of live latents: 0.2 of the ProLU author's recipe,
    1 where a short encoder would not pass the first threshold or win a place."""
    sparse_by_itself: ClassVar[bool] = False
    """k fixes L0, so a sparsity penalty is refused."""
    additive: ClassVar[bool] = True
    """m enters as m + b_enc only, so a shift of m can be folded into the bias."""
    negative: ClassVar[bool] = False
    """Latents may be negative."""
    whole_batch: ClassVar[bool] = False
    """Whether a latent fires depends on other rows of the batch."""
    has_auxiliary: ClassVar[bool] = False
    """`auxiliary` returns latents."""

    def start(self, settings: SAEConfig) -> dict[str, float]:
        """Return the initial value of each learned parameter and buffer."""
        return {}

    def latents(self, m: Tensor, P: Parameters, settings: Settings) -> Tensor:
        """Return latents as in training."""
        raise NotImplementedError

    def latents_among(
        self, m: Tensor, P: Parameters, settings: Settings, ranks: Ranks, cuts_K: Tensor | None
    ) -> Tensor:
        """Return latents of a share of a batch: the others have the rest, and `cuts_K` may be known of the whole."""
        return self.latents(m, P, settings)

    def offset(self, P: Parameters) -> Tensor:
        """Return what is added to m to give the margin (K, 1, F)."""
        return P["b_enc"]

    def margin(self, m: Tensor, P: Parameters) -> Tensor:
        """Return how far each latent's gate is open: it fires where this is positive."""
        return m + self.offset(P).to(m.dtype)

    def reach(self, settings: SAEConfig) -> float | None:
        """Return how far below an open gate the training loss still has gradients; None: everywhere.

        With a number, latents and all gradients are 0 where m + offset <= -reach, and the sparse path can be taken.
        """
        return None

    def entries(self, m_KBF: Tensor, offset_KF: Tensor, ks: Sequence[int], find: Find) -> tuple[Entries, Tensor] | None:
        """Return the entries that are within reach, where m + offset > 0, and their m; None: `find` gives up."""
        return find(m_KBF, offset_KF, [0] * len(ks))

    def at_entries(self, m: Tensor, P: Parameters, settings: Settings) -> Tensor:
        """Return latents of such entries, of shape (1, 1, N) like m and the parameters P of each."""
        return self.latents(m, P, settings)

    def revived(self, m: Tensor, P: Parameters) -> Tensor:
        """Return what a silent latent would give if its bias did not shut it, for the AuxK loss."""
        return torch.relu(m)

    def penalised(self, m: Tensor, acts: Tensor, P: Parameters) -> Tensor:
        """Return the values >= 0 that a sparsity penalty sums: the latents, unless a nonlinearity says otherwise."""
        return acts

    def auxiliary(self, m: Tensor, P: Parameters) -> Tensor | None:
        """Return latents that must also reconstruct x through the detached decoder; None: there is no such loss."""
        return None

    def observe(self, acts: Tensor, P: Parameters) -> None:
        """Update buffers in place after a training step."""

    def store(self, P: Parameters) -> dict[str, Tensor]:
        """Return the `stored` vectors of trained parameters."""
        return {name: P[name] for name in self.stored}

    def infer(self, m: Tensor, P: Parameters, k: int) -> Tensor:
        """Return latents of an artefact; P holds `b_enc` and the `stored` vectors, k the artefact's k."""
        return self.latents(m, P, (SAEConfig(nonlinearity="", k=k),))


def keep_where_positive(values: Tensor, condition: Tensor) -> Tensor:
    """Return `values` where `condition > 0`, else 0; one vectorised pass, several times faster than a boolean mask."""
    return torch.ops.aten.threshold_backward(values, condition, 0)


def sum_rows(values: Tensor) -> Tensor:
    """Return the sum over rows (..., 1, F) in at least fp32, as a product so that low precision is summed in fp32."""
    ones = values.new_ones(*values.shape[:-2], 1, values.shape[-2])
    return (ones @ values).to(torch.promote_types(values.dtype, torch.float32))
