"""The command line."""

from numwatch.cli.app import main

__all__ = ["main"]
