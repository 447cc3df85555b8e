"""Hydra groups; installed as the package `sae_cli.conf`."""
