"""`numwatch demo`: a small GPT on text that ships with Python, in the precision asked for."""

from numwatch.demo.precision import PRECISIONS
from numwatch.demo.train import run_demo

__all__ = ["PRECISIONS", "run_demo"]
