"""Building plans, and changing the weights of built ones."""
