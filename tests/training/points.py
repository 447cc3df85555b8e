"""Small points on a synthetic source for training tests."""

from sae_cli.config.compose import compose
from sae_cli.config.schema import Config

SMALL = [
    "source=features",
    "source.features=24",
    "source.width=12",
    "source.probability=0.1",
    "sae=prolu_ste",
    "sae.latents=32",
    "train.tokens=3200",
    "train.batch=80",
    "train.log_every=10",
    "train.precision=fp32",
    "orthogonality=chunked",
    "orthogonality.chunk=10",
    "orthogonality.phi=square",
    "tracker=jsonl",
    "eval.contexts=0",
]


def point(folder, *words: str) -> Config:
    """Return a 40-step point whose runs go under `folder`."""
    return compose([*SMALL, f"runs_dir={folder}", *words])
