"""From a PyTorch module to an engine in its place, in one call."""
