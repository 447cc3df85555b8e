"""Products over the entries (row, latent) that are not zero."""
