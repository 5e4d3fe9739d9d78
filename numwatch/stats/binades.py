"""The range of exponents that are counted apart."""

BINADE_MIN = -127
"""Binade of every non-zero element below 2^-126."""
BINADE_MAX = 127
"""Binade of every finite element from 2^127 up."""
