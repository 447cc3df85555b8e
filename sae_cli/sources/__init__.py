"""Where activations come from: what a source offers to the cache writer and to the trainer."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    from torch import Tensor

Split = Literal["train", "validation"]


@dataclass
class RowBlock:
    """Consecutive rows of a split's stream: row `start` and those after it."""

    start: int
    """Index in the stream of the first row."""
    x: "dict[str, Tensor]"
    """Activations (N, D) by hook, any floating dtype, in raw units."""
    context_N: "Tensor"
    """int32 context (or source file row block) of each row."""
    position_N: "Tensor"
    """int32 position of each row in its context."""
    tokens_CT: "Tensor | None" = None
    """int32 tokens of the contexts that begin in this block, in order; None without a tokenizer."""
    document_CT: "Tensor | None" = None
    """int32 document of each of these tokens; None without documents."""
    first_context: int = 0
    """Index of the first context in tokens_CT."""


class RowSource(Protocol):
    """A finite, repeatable stream of activations that the cache writer stores.

    The stream of a split is a pure function of the configuration: `rows(split, start)` yields the same rows with the
    same values whatever `start` is. It may begin before `start` (at the boundary of a forward pass, so that batched
    products round the same way); the writer drops the surplus.
    """

    widths: dict[str, int]
    """Width D by hook; the vectors source has the single hook `vectors`."""

    def fingerprint(self, hook: str) -> str:
        """Return a content hash of everything that decides the rows (not of how many are stored)."""
        ...

    def describe(self, hook: str) -> dict[str, Any]:
        """Return what the manifest records: model, hook, processing, tokenizer, text, library versions."""
        ...

    def rows(self, split: Split, start: int) -> Iterator[RowBlock]:
        """Yield blocks that cover the stream from row `start` (or a little before) to its end.

        Raises UserError naming the model, hook and text row if an activation is not finite.
        """
        ...


class ActivationSource(Protocol):
    """What the trainer and the evaluation read: endless training batches and a finite validation part."""

    d_model: int
    fingerprint: str
    scale: float
    """sqrt(D / E||x||^2): the one scalar that brings the data to E||x||^2 = D."""
    mean_D: "Tensor"
    """Mean of the training part, fp32, raw units."""
    variance: float
    """E||x - mean||^2 of the training part, raw units."""
    true_GD: "Tensor | None"
    """Unit true features of a synthetic source, else None."""
    parents_G: "Tensor | None"
    """Parent of each true feature (int64, -1 for none) of a synthetic source, else None."""

    def batches(self, start: int, size: int) -> "Iterator[Tensor]":
        """Yield batches `start`, `start + 1`, ... of `size` rows (B, D), raw units, without end.

        Batch t is a pure function of the source, the data seed and t, so training resumes anywhere exactly.
        """
        ...

    def validation(self, size: int) -> "Iterator[Tensor]":
        """Yield the validation rows in a fixed order in batches of at most `size` rows, raw units."""
        ...
