"""Finding out what is wrong with a model: the part that fails, and the nodes that cost accuracy."""
