"""Every number at which a rule speaks, with where it comes from. "Policy" is our own judgement."""

CONFIRMATIONS = 3
"""Recorded steps a condition must hold on before it is an alarm, where one step seldom is one:
policy; GradScaler alone skips one step at a time in healthy runs."""

# Operations
MULTIPLES = {"fp16": 8, "bf16": 8, "tf32": 4, "fp8": 16, "mxfp8": 32, "block fp8": 128, "int8": 16}
"""What M, N and K must be multiples of for Tensor Cores: NVIDIA, Matrix Multiplication Background
User's Guide; of MXFP8 and block FP8 the block and tile sizes Transformer Engine asks for."""
MISALIGNED_SHARE = 0.25
"""Share of a step's multiplications in misaligned GEMMs above which they hurt: policy; a vocabulary
that is no multiple misaligns the head of nearly every healthy model."""
MISALIGNED_WORK = 1e11
"""Multiplications a step below which they do not: policy; about a millisecond of Tensor Cores."""
RESULT_HEADROOM = 8.0
"""A result of exp, a power or a sum within this factor of FP16's maximum is close to overflow:
policy; exp gets there at 9.0 and overflows at 11.09, x^2 at 91 and 256."""

# Loss scale
SPREAD_WINDOW = 50
"""Steps over which skips are counted: policy."""
PERSISTENT_SKIPS = 0.1
"""Share of the steps of such a window that are skipped, above which it is no search for a scale:
policy; a growth interval of 10 skips 1 in 11, GradScaler's own 1 in 2000."""
SCALE_HEADROOM = 4
"""Powers of two by which the loss scale could be higher without an overflow, from which on it is
called too low: policy; GradScaler's own search leaves at most 1, and gradients move by some."""
OVERFLOW_MARGIN = 16.0
"""An amax within this factor of the format's maximum counts as close to it: policy."""

# Gradients
FLUSHED_SHARE = 0.05
"""Share of a gradient's non-zero elements flushed, above which it hurts: 5 % below 2^-24 cost the
speech model of Micikevicius et al. 2017 its accuracy."""
MIN_ELEMENTS = 16
"""Elements below which shares tell nothing: policy."""
LASTING = 0.5
"""Share of the recorded steps since it began on which a gradient that is zero must be so: policy;
less is a start that training leaves behind."""
NEAR_FLUSHING = 2.0**12
"""A gradient whose amax is at most so many times the smallest subnormal can be flushed whole by the
next layer: policy; layers change gradients by less than their fan-in."""
VANISHING = 1e-5
"""Gradient rms at the first layer over that at the last, below which the first layers stand still:
policy; twelve sigmoids come to 1e-10, healthy residual and plain networks to 0.01 and more."""
EXPLODING = 2.0**8
"""The same from above: policy; healthy networks stay within a factor of 20."""
MIN_DEPTH = 4
"""Layers whose gradients are seen, below which there is no depth to speak of: policy."""
LOSS_RISE = 0.1
"""Relative rise of the loss that is more than noise, beside its own spread: policy."""
MIN_TREND = 20
"""Steps a trend of the loss must rest on: policy."""

# Forward
MIN_FIT = 8
"""Recorded steps a line through log2 amax must rest on: policy."""
FIT_CORRELATION = 0.9
"""Correlation of log2 amax and step from which on growth is steady: policy."""
FIT_DOUBLINGS = 3.0
"""Doublings of an amax that are growth and not the first steps' search: policy."""
HORIZON = 1.0
"""An overflow foreseen within so many times the steps run so far is told: policy."""
ATTENTION_LOGIT = 1e4
"""Amax of attention logits above which every run diverged: Wortsman et al. 2023 (2309.14322)."""
OUTLIER_RATIO = 100.0
"""Amax over the rms of the non-zero elements: policy; of 10^6 normal ones it is 5, channels that
trouble FP8 come to hundreds (2409.12517)."""
OUTLIER_ELEMENTS = 1024
"""Elements below which such a ratio tells nothing: policy."""

# Updates
SWALLOWED_SHARE = 0.3
"""Share of all lost updates above which it hurts: policy; the demo's GPT keeps 96 % of its progress
at 50 % lost and 61 % at 91 % (docs/optimizer.md), healthy BF16 runs lose up to 20 %."""
SWALLOWED_EDQ = 0.5
"""Normalised EDQ of one parameter below which it hardly follows its gradient: policy."""
STANDSTILL_SHARE = 0.95
"""Share of all updates lost above which the weights stand still: policy; with STANDSTILL_EDQ both
runs of docs/optimizer.md that kept at most 2 % of their progress and none of the others."""
STANDSTILL_EDQ = 0.1
"""Normalised EDQ below which they do."""
FULL_RATE = 0.5
"""Share of a run's highest learning rate from which on updates are judged: policy; a schedule's
warm-up and its end are small on purpose."""

# Optimizer state
BELOW_EPS = 0.5
"""Share of a second moment's elements with sqrt(v) below eps, above which Adam no longer adapts:
policy; RMS(g) near eps is where layers stop learning (Wortsman et al. 2023, 2309.14322)."""
BELOW_EPS_OVERALL = 0.25
"""The same over all parameters, from which on it hurts: policy; a bias before a softmax or a norm
has a gradient of 0 but for rounding in healthy runs."""
CONVERGED = 0.01
"""Loss relative to the first one below which small gradients are no harm: policy."""
VANISHED_SHARE = 0.01
"""Share of a second moment that is 0 where the gradient is not, above which it hurts: policy."""
RMS_ALARM = 2.3
"""RMS_t above which a loss spike may follow: Wortsman et al. 2023 (2304.13013), section 3.4."""
RMS_LEAD = 8
"""Steps within which it follows: the same, 1 to 8."""
SURVIVED_STEPS = 10
"""Steps a run went on with a finite loss, after which eps = 0 has not killed it: policy."""

# Loss
SPIKE_SCORE = 6.0
"""Spreads above the median of the last SPIKE_WINDOW values: OLMo-core's spike rule."""
SPIKE_WINDOW = 128
"""Values a spike is judged by: OLMo-core."""
SPIKE_WARM_UP = 64
"""Values of the loss before the first spike: OLMo-core."""
DIVERGED_SHARE = 0.95
"""Share of all further losses that are above twice the first where a run diverged at once: policy;
a batch of unlike weights may start low by chance."""
SPIKE_SPREAD = 0.01
"""Least spread, in shares of the median: policy; a loss that stands still has none of its own."""
SPIKE_HORIZON = 8
"""Values that belong to one spike: policy, as RMS_LEAD."""
RECOVERED_SCORE = 3.0
"""Spreads above the median within which a value has come back: policy."""
NORM_WARM_UP = 25
"""Gradient norms before the first spike of theirs: ZClip (2504.02507)."""
NORM_RISE = 2.0
"""Binades a gradient norm must rise for a spike: policy; ZClip's z > 2.5 clips healthy steps."""
DRIFT_BLOCKS = 8
"""Equal parts of a run over whose medians a drift is judged: policy."""
DRIFT_VALUES = 64
"""Gradient norms a drift must rest on: policy."""
DRIFT_RISE = 2.0
"""Binades a gradient norm must have drifted up: policy; it climbs before MX runs diverge
(2506.20752), and in healthy ones it may double."""

# FP8 and block formats
CAST_SATURATED = 0.001
"""Share saturated by a scaled cast, above which it is no clipped outlier: the summary's."""
CAST_FLUSHED = 0.05
"""Share a cast flushes, above which it hurts: as FLUSHED_SHARE; healthy runs stay below 0.5 %."""
PEAK_LOSS = 1.25
"""Factor by which a cast lowers amax over rms, above which it has clamped: policy; rounding changes
it by at most 1/16."""
COLLAPSED_SHARE = 0.5
"""Share of a norm's gains that a block format rounds to one value, above which it has collapsed:
policy; the runs of 2506.20752 that diverged had nearly all."""

# Comparison of two runs
APART_SCORE = 5.0
"""Distance of two runs, in their noise, from which on they are apart: policy; three steps in a row
differ by that once in 10^10 where both are nothing but normal noise."""
APART_LEAST = 0.1
"""Binades of amax or rms that two runs must be apart: policy; 7 %."""
APART_SHARE = 0.01
"""Share of elements that one run must flush more than the other: policy."""
APART_LOSS = 0.01
"""Binades of the loss that two runs must be apart: policy; 0.7 %."""
APART_STEPS = 8
"""Distances below which the second largest stands for the noise: policy."""
