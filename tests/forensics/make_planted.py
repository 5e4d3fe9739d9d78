"""What `numwatch reproduce --script` is given in the tests."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from planted import Linear, NaiveSoftmax, Raising, Trap, ZeroNorm, model


def naive():
    return model(NaiveSoftmax)


def zero():
    return model(ZeroNorm)


def linear():
    return Linear()


def trap():
    return Trap()


def raising():
    return Raising()
