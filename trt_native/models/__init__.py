"""Models written to export well, compatible with their published checkpoints."""
