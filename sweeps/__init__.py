"""Grid files that ship with the package: `sae sweep NAME`."""
