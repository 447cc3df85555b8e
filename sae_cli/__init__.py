"""Sparse autoencoder experiments from the shell.

Shape suffixes used in every tensor name of the package:

    B rows of a batch    D model width      F latents      K members of a stack
    T tokens of a context  V vocabulary     C contexts     N rows, any number
    G true features

``W_dec_KFD`` is a decoder of K members with F rows (directions) of width D.

In a notebook: `from sae_cli import load_sae, ActivationStore, steer, ablate, reconstruct`.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sae_cli.dictionary.artifact import SAE
    from sae_cli.library import ActivationStore, ablate, load_sae, reconstruct, steer

__all__ = ["SAE", "ActivationStore", "ablate", "load_sae", "reconstruct", "steer"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Import what `__all__` names when it is first asked for, so that commands start without torch."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from sae_cli import library

    return getattr(library, name)


def __dir__() -> list[str]:
    """Name also what is imported when it is first asked for, for completion in a notebook."""
    return [*globals(), *__all__]
