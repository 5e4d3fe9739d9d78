"""What to use instead: formats, scales and recipes for each tensor, from a run's record."""
