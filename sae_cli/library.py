"""What a notebook needs: trained SAEs, cached activations, and functions for a model's hooks.

from sae_cli import load_sae, steer
sae = load_sae("runs/demo/0f3a2b1c9d")
model.run_with_hooks(tokens, fwd_hooks=[("blocks.1.hook_out", steer(sae, 12, 8.0))])
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from torch import Tensor

from sae_cli.config.compose import compose
from sae_cli.dictionary.artifact import SAE, row_scale
from sae_cli.errors import UserError
from sae_cli.interop.reading import open_sae
from sae_cli.sources.registry import open_source, refuse_synthetic

Hook = Callable[..., Tensor]
"""hook(value, hook=None) -> value: what TransformerLens calls at a hook point, value (..., D)."""


def load_sae(path: str | Path) -> SAE:
    """Return the SAE of a run, of an exported folder, or of SAELens, dictionary_learning or sparsify.

    Its encode takes activations (B, D) in the model's own units. Raises UserError if there is none or it is damaged.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise UserError(f"{path} is not a folder; give a run or the folder of an SAE")
    return open_sae(folder)


class ActivationStore:
    """Cached activations of a language model or of files, described by overrides as on the command line.

    `ActivationStore("model=tiny", "text=wiki")`; the cache is written first if there is none. Raises UserError for
    overrides that are not sound and for sources without a cache.
    """

    def __init__(self, *overrides: str, device: str = "cpu") -> None:
        self.config = compose(list(overrides))
        refuse_synthetic(self.config)
        self.source = open_source(self.config, device)
        self.d_model: int = self.source.d_model
        self.mean_D: Tensor = self.source.mean_D

    def batches(self, size: int, start: int = 0) -> Iterator[Tensor]:
        """Yield mixed training batches `start`, `start + 1`, ... (size, D) in raw units, without end."""
        return self.source.batches(start, size)

    def validation(self, size: int) -> Iterator[Tensor]:
        """Yield the validation rows in batches of at most `size` rows (B, D), raw units."""
        return self.source.validation(size)


def steer(sae: SAE, latent: int, strength: float) -> Hook:
    """Return a hook that adds `strength` times a latent's direction at every token."""

    def hook(value: Tensor, hook: object = None) -> Tensor:
        return value + strength * sae.W_dec_FD[_index(sae, latent)].to(value)

    return hook


def ablate(sae: SAE, latents: Sequence[int]) -> Hook:
    """Return a hook that takes off what latents write, f_i W_dec[i], and leaves all else, the SAE's error too."""
    chosen = [_index(sae, latent) for latent in latents]

    def hook(value: Tensor, hook: object = None) -> Tensor:
        x_ND = value.reshape(-1, value.shape[-1]).to(sae.W_enc_DF)
        acts_NF = sae.encode(x_ND)[:, chosen]
        written_ND = acts_NF @ sae.W_dec_FD[chosen]
        if sae.input_norm == "row":
            written_ND = written_ND * row_scale(x_ND)
        return value - written_ND.reshape(value.shape).to(value)

    return hook


def reconstruct(sae: SAE) -> Hook:
    """Return a hook that puts the SAE's reconstruction in the place of every activation."""

    def hook(value: Tensor, hook: object = None) -> Tensor:
        x_ND = value.reshape(-1, value.shape[-1]).to(sae.W_enc_DF)
        return sae.forward(x_ND)[1].reshape(value.shape).to(value)

    return hook


def _index(sae: SAE, latent: int) -> int:
    if not 0 <= latent < len(sae.b_enc_F):
        raise UserError(f"latent {latent}: this SAE has latents 0 to {len(sae.b_enc_F) - 1}")
    return latent
