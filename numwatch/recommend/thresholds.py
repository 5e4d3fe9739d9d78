"""Every number a recommendation turns on, and where it comes from. "Policy" is our judgement."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """What an operand may lose and still be rounded.

    Attributes:
        flushed_forward: Share of an input's or a weight's elements that become zero, at the 95 %
            point of the recorded steps.
        flushed_gradient: The same of a gradient.
        bearable: The same of a gradient where no choice stays within `flushed_gradient`.
        saturated: Share above the format's largest value.
        sqnr: Signal to noise of inputs and weights at least, in dB.
    """

    flushed_forward: float
    flushed_gradient: float
    bearable: float
    saturated: float
    sqnr: float


EIGHT_BITS = Limits(
    flushed_forward=0.25, flushed_gradient=0.01, bearable=0.05, saturated=0.001, sqnr=20.0
)
"""Of FP8 and MXFP8. A forward's flushed elements are small addends of a sum (a GELU's tail), a
gradient's are whole updates: 5 % cost the speech model of Micikevicius et al. 2017 its accuracy, a
fifth of that is asked for first. Saturated: as the summary's. SQNR: 5 dB below E5M2's. Policy.
"""
FOUR_BITS = Limits(
    flushed_forward=0.35, flushed_gradient=0.6, bearable=0.6, saturated=0.1, sqnr=12.0
)
"""Of MXFP4 and NVFP4, whose largest value is 12 times their smallest: a normal tensor has 9 % of
its elements below it, and the four MX rules clip up to a block's amax. Their gradients round
stochastically, so what becomes zero is not lost on average. Policy; arXiv:2509.25149 trains so."""
INTEGER_WEIGHTS = Limits(
    flushed_forward=0.25, flushed_gradient=0.0, bearable=0.0, saturated=0.001, sqnr=25.0
)
"""Of INT8 weights: absmax of a normal tensor has 39 dB. Policy."""

PERCENTILE = 0.95
"""Point of the recorded steps that limits are held against: policy; the worst step is told too."""
DRIFT = 3.0
"""Bits an amax moves from the first to the last quarter of a run that are worth a word: policy."""

ROWS = 96
"""Rows of an operand that are kept to be judged, evenly over the run: policy."""
ERROR_ROWS = 4
"""Of these, rows whose rounding errors are predicted: each takes a millisecond."""

NARROW = 32
"""Features or outputs below which a GEMM gains nothing from 8 bits: policy; two blocks of NVFP4."""
FIRST_BLOCKS = 2 / 62
"""Share of a network's blocks kept at its start for 4 bits: arXiv:2509.25149, 2 of 62."""
LAST_BLOCKS = 8 / 62
"""And at its end: 8 of 62."""

SCALE_MARGIN = 2
"""Powers of two the loss scale starts below the largest that nothing overflowed at: policy;
gradients move by some, and GradScaler grows by one a time."""
STATIC_WIDTH = 12
"""Powers of two a window must be wide for a static scale in its middle: policy, six either way."""
HIGHEST_START = 24
"""Exponent of the largest loss scale that is recommended: policy."""
ROOM = 8
"""Powers of two FP16's window must be wide to leave BF16 for it: policy."""
FP16_HEADROOM = 3.0
"""Bits an FP16 forward must keep free for FP16 to be chosen: policy; amaxes of activations double
and double again over a run."""
SWALLOWED = 0.05
"""Share of updates that low weights swallow, from which on masters are asked for: policy; the
demo's GPT keeps 96 % of its progress at 50 %, but more is swallowed as the learning rate decays."""
