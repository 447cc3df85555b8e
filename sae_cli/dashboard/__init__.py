"""What each latent of one SAE does: activating examples, statistics, logits, neighbours, for the feature page."""
