"""What two or more finished dictionaries have in common, and which directions are sums of others."""
