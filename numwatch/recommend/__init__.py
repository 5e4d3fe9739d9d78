"""What to use instead: formats, scales and recipes for each tensor, from a run's record."""

from numwatch.recommend.advise import recommend

__all__ = ["recommend"]
