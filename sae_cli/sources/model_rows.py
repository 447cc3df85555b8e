"""The rows of a language model's activations at its hooks: what a cache stores."""

from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor

from sae_cli.ahead import ahead
from sae_cli.config.schema import Config
from sae_cli.device import is_out_of_memory
from sae_cli.errors import UserError
from sae_cli.files import short_hash
from sae_cli.sources import RowBlock, Split
from sae_cli.sources.language_model import LanguageModel, model_fingerprint
from sae_cli.sources.packing import ContextBatch
from sae_cli.sources.text import dataset_commit, text_fingerprint


def rows_fingerprint(config: Config, hook: str) -> str:
    """Return a short hash of everything that decides a hook's rows, without loading the model.

    model.batch is left out: it changes how products round in the last bit, not what they are.
    """
    model = config.model
    bos = [model.prepend_bos, model.prepend_bos and model.drop_bos]
    identity = [model_fingerprint(model), hook, model.dtype, model.processing, model.context, bos]
    return short_hash([*identity, text_fingerprint(config.text), config.cache.dtype])


class LanguageModelRows:
    """The rows of a text part at one or several hooks, in text order: a RowSource.

    A context gives model.context rows, one less if its BOS row is dropped; so row i belongs to a known context, and
    `rows` can begin at the forward pass that holds row `start` after tokenising, not running, what comes before.
    """

    def __init__(self, config: Config, device: str) -> None:
        self.config = config
        self.hooks = list(dict.fromkeys([config.model.hook, *config.cache.hooks]))
        self.model = LanguageModel(config.model, device)
        self.text_commit = dataset_commit(config.text)  # both parts are of this one, wherever the branch moves
        self.dropped = int(config.model.prepend_bos and config.model.drop_bos)
        self.widths = {hook: self.model.d_model(hook) for hook in self.hooks}

    def fingerprint(self, hook: str) -> str:
        """Return rows_fingerprint of the configuration."""
        return rows_fingerprint(self.config, hook)

    def describe(self, hook: str) -> dict[str, Any]:
        """Return what the manifest records about the rows' origin."""
        model, text = self.config.model, self.config.text
        names = ("name", "path", "revision", "dtype", "processing", "context", "batch", "prepend_bos", "drop_bos")
        known = {"fingerprint": model_fingerprint(model), **self.model.commit}
        tokenizer = {"class": type(self.model.tokenizer).__name__, "vocabulary": len(self.model.tokenizer)}
        return {
            "source": "language_model",
            "model": {name: getattr(model, name) for name in names} | known,
            "hook": hook,
            "tokenizer": tokenizer | {"bos_id": self.model.bos_id, "separator_id": self.model.separator_id},
            "text": {
                "name": text.name,
                "from": text.path or text.dataset,
                "fingerprint": text_fingerprint(text),
                **({"commit": self.text_commit} if self.text_commit else {}),
            },
            "versions": {package: version(package) for package in ("transformer_lens", "transformers", "torch")},
        }

    def rows(self, split: Split, start: int) -> Iterator[RowBlock]:
        """Yield one block per forward pass, in cache.dtype on the CPU, from the pass that holds row `start` on.

        A thread tokenises ahead. Raises UserError if an activation is not finite, in the model's precision or in the
        cache's, or if a forward pass runs out of memory.
        """
        size, length = self.config.model.batch, self.config.model.context
        text = replace(self.config.text, revision=self.text_commit or self.config.text.revision)
        rows = length - self.dropped
        with closing(ahead(self.model.contexts(text, split), 2)) as batches:
            for index, batch in enumerate(batches):
                if index < start // (size * rows):
                    continue
                first, contexts = index * size, len(batch.tokens_CT)
                values = self._read(batch.tokens_CT)
                yield RowBlock(
                    start=first * rows,
                    x={hook: self._stored(hook, values[hook], batch, first) for hook in self.hooks},
                    context_N=torch.arange(first, first + contexts, dtype=torch.int32).repeat_interleave(rows),
                    position_N=torch.arange(self.dropped, length, dtype=torch.int32).repeat(contexts),
                    tokens_CT=batch.tokens_CT.int(),
                    document_CT=batch.document_CT.int(),
                    first_context=first,
                )

    def _read(self, tokens_CT: Tensor) -> dict[str, Tensor]:
        """Return the activations at the hooks; UserError says what to lower if there is no memory for the pass."""
        try:
            return self.model.read(tokens_CT, self.hooks)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            batch = self.config.model.batch
            remedy = f"lower model.batch to {batch // 2}" if batch > 1 else "lower model.context or set model.dtype"
            raise UserError(
                f"model.batch={batch}: a forward pass of {len(tokens_CT)} contexts of {self.config.model.context} "
                f"tokens does not fit into the memory of {self.model.device}; {remedy}; the same command then goes on"
            ) from error

    def _stored(self, hook: str, value_CTD: Tensor, batch: ContextBatch, first: int) -> Tensor:
        """Return the rows (N, D) to keep, in cache.dtype; UserError names the first row that is not finite."""
        value_CTD = value_CTD[:, self.dropped :]
        stored_CTD = value_CTD.to(getattr(torch, self.config.cache.dtype))
        if not all(extreme.isfinite() for extreme in stored_CTD.aminmax()):  # far cheaper than to look at each number
            finite_CT = stored_CTD.isfinite().all(dim=-1)
            context, row = (~finite_CT).nonzero()[0].tolist()
            position = row + self.dropped
            largest = float(value_CTD[context, row].abs().max())
            raise UserError(
                f"model {self.config.model.name}, hook {hook}: the activation at context {first + context}, position "
                f"{position} (document {int(batch.document_CT[context, position])}) is not finite in "
                f"{self.config.cache.dtype} (largest absolute value {largest:.3g}): set cache.dtype=bfloat16, "
                "model.drop_bos=true, or model.dtype=bfloat16 if that is float16"
            )
        return stored_CTD.reshape(-1, stored_CTD.shape[-1]).cpu()
