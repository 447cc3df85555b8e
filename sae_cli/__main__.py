"""`python -m sae_cli ...` is the `sae` command."""

from sae_cli.cli import main

main()
