"""Synthetic activations with known true features, endless and seeded: x = sum_g s_g w_g + noise."""

from sae_cli.sources.synthetic.source import SyntheticSource, fingerprint

__all__ = ["SyntheticSource", "fingerprint"]
