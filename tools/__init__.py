"""The scripts that made the bundled language model and its text; run from a checkout, no part of the package."""
