"""The columns of a record: what every reader of the Parquet files may rely on.

A later numwatch may add columns. It raises `SCHEMA_VERSION` only when it changes what is here.
"""

import pyarrow as pa

SCHEMA_VERSION = 1
RECORD_FOLDER = "numwatch"
"""Name of the folder a run writes its record to, below its log directory."""


def _schema(*columns: tuple[str, pa.DataType, bool]) -> pa.Schema:
    return pa.schema([pa.field(name, kind, nullable) for name, kind, nullable in columns])


_ALWAYS, _NULLABLE = False, True

TENSORS = _schema(
    ("attempt", pa.int32(), _ALWAYS),
    ("step", pa.int64(), _ALWAYS),
    ("slot", pa.string(), _ALWAYS),
    ("calls", pa.int64(), _ALWAYS),
    ("numel", pa.int64(), _ALWAYS),
    ("zeros", pa.int64(), _NULLABLE),
    ("nans", pa.int64(), _ALWAYS),
    ("posinfs", pa.int64(), _ALWAYS),
    ("neginfs", pa.int64(), _ALWAYS),
    ("pow2s", pa.int64(), _NULLABLE),
    ("amax", pa.float64(), _ALWAYS),
    ("amin", pa.float64(), _NULLABLE),
    ("sum", pa.float64(), _NULLABLE),
    ("sumsq", pa.float64(), _NULLABLE),
    ("loss_scale", pa.float64(), _ALWAYS),
    ("binade_first", pa.int16(), _NULLABLE),
    ("binades", pa.list_(pa.int64()), _NULLABLE),
    ("cast_format", pa.string(), _NULLABLE),
    ("cast_scale", pa.float64(), _NULLABLE),
    ("cast_flushed", pa.int64(), _NULLABLE),
    ("cast_saturated", pa.int64(), _NULLABLE),
)
"""One row per slot and recorded step.

`binades[i]` counts the elements with 2^e <= |x| < 2^(e+1), e = `binade_first` + i; see
`numwatch.TensorStats` for this and the other measures. On steps at which only amax and the
non-finite elements were measured, the nullable columns are null. The `cast_` columns are what a
library's own cast of the tensor did (`numwatch.tensor_rows.Cast`), null where there is none.
"""

STEPS = _schema(
    ("attempt", pa.int32(), _ALWAYS),
    ("step", pa.int64(), _ALWAYS),
    ("epoch", pa.int64(), _ALWAYS),
    ("batch", pa.int64(), _ALWAYS),
    ("loss", pa.float64(), _NULLABLE),
    ("lr", pa.float64(), _NULLABLE),
    ("grad_norm", pa.float64(), _NULLABLE),
    ("loss_scale_before", pa.float64(), _ALWAYS),
    ("loss_scale_after", pa.float64(), _ALWAYS),
    ("found_inf", pa.bool_(), _ALWAYS),
    ("skipped", pa.bool_(), _ALWAYS),
    ("skipped_optimizers", pa.list_(pa.int32()), _NULLABLE),
    ("loss_scales", pa.list_(pa.float64()), _NULLABLE),
    ("nonfinite_parameters", pa.list_(pa.string()), _NULLABLE),
    ("step_seconds", pa.float64(), _ALWAYS),
    ("numwatch_seconds", pa.float64(), _ALWAYS),
)
"""One row per optimizer step, skipped ones included; see `numwatch.snapshot.StepScalars`."""

UPDATES = _schema(
    ("attempt", pa.int32(), _ALWAYS),
    ("step", pa.int64(), _ALWAYS),
    ("slot", pa.string(), _ALWAYS),
    ("sampled", pa.int64(), _ALWAYS),
    ("nonzero", pa.int64(), _ALWAYS),
    ("ratio", pa.float64(), _NULLABLE),
    ("storage", pa.string(), _ALWAYS),
    ("swallowed", pa.float64(), _NULLABLE),
    ("edq", pa.float64(), _NULLABLE),
    ("lost", pa.bool_(), _NULLABLE),
    ("numel", pa.int64(), _NULLABLE),
    ("stochastic_kept", pa.float64(), _NULLABLE),
    ("deferred", pa.float64(), _NULLABLE),
    ("edq_normalised", pa.float64(), _NULLABLE),
    ("intended", pa.string(), _NULLABLE),
)
"""One row per parameter, candidate storage format and full step.

See `numwatch.step_entries.Update`.
"""

STATES = _schema(
    ("attempt", pa.int32(), _ALWAYS),
    ("step", pa.int64(), _ALWAYS),
    ("slot", pa.string(), _ALWAYS),
    ("dtype", pa.string(), _ALWAYS),
    ("sampled", pa.int64(), _ALWAYS),
    ("eps", pa.float64(), _NULLABLE),
    ("eps_stored", pa.float64(), _NULLABLE),
    ("decay", pa.float64(), _NULLABLE),
    ("decay_stored", pa.float64(), _NULLABLE),
    ("below_eps", pa.float64(), _NULLABLE),
    ("vanished", pa.float64(), _NULLABLE),
    ("rms", pa.float64(), _NULLABLE),
)
"""One row per tensor of optimizer state and full step.

See `numwatch.step_entries.OptimizerState`.
"""

SHADOWS = _schema(
    ("attempt", pa.int32(), _ALWAYS),
    ("step", pa.int64(), _ALWAYS),
    ("slot", pa.string(), _ALWAYS),
    ("sampled", pa.int64(), _ALWAYS),
    ("zeros", pa.int64(), _ALWAYS),
    ("run_zeros", pa.int64(), _ALWAYS),
    ("flushed", pa.int64(), _ALWAYS),
    ("relative_error", pa.float64(), _NULLABLE),
    ("cosine", pa.float64(), _NULLABLE),
)
"""One row per gradient slot and shadow step; see `numwatch.step_entries.Shadow`."""

OPERATIONS = _schema(
    ("attempt", pa.int32(), _ALWAYS),
    ("step", pa.int64(), _ALWAYS),
    ("order", pa.int32(), _ALWAYS),
    ("module", pa.string(), _ALWAYS),
    ("operation", pa.string(), _ALWAYS),
    ("phase", pa.string(), _ALWAYS),
    ("dtypes", pa.list_(pa.string()), _ALWAYS),
    ("shapes", pa.list_(pa.list_(pa.int64())), _ALWAYS),
    ("output", pa.string(), _NULLABLE),
    ("count", pa.int64(), _ALWAYS),
    ("gemm", pa.string(), _NULLABLE),
    ("m", pa.int64(), _NULLABLE),
    ("n", pa.int64(), _NULLABLE),
    ("k", pa.int64(), _NULLABLE),
    ("contiguous", pa.bool_(), _NULLABLE),
    ("amax", pa.float64(), _NULLABLE),
)
"""One row per different operation of the step that was audited.

See `numwatch.step_entries.Operation`.
"""

_COUNTS = pa.list_(pa.int64())

BLOCKS = _schema(
    ("attempt", pa.int32(), _ALWAYS),
    ("step", pa.int64(), _ALWAYS),
    ("slot", pa.string(), _ALWAYS),
    ("size", pa.int32(), _ALWAYS),
    ("direction", pa.string(), _ALWAYS),
    ("loss_scale", pa.float64(), _ALWAYS),
    ("blocks", pa.int64(), _ALWAYS),
    ("zero_blocks", pa.int64(), _ALWAYS),
    ("below", pa.list_(_COUNTS), _ALWAYS),
    ("tops", pa.list_(_COUNTS), _ALWAYS),
    ("amax_first", pa.int16(), _ALWAYS),
    ("amaxes", _COUNTS, _ALWAYS),
    ("peaks", _COUNTS, _ALWAYS),
    ("elements", pa.list_(_COUNTS), _ALWAYS),
    ("near", pa.int64(), _ALWAYS),
    ("edge", pa.int64(), _ALWAYS),
    ("deep", pa.int64(), _ALWAYS),
)
"""One row per GEMM operand, block size and direction, on some of the full steps.

From `blocks` on the columns are those of `numwatch.BlockHistogram`; `loss_scale` is as in
`tensors`.
"""

RANKS = _schema(
    ("attempt", pa.int32(), _ALWAYS),
    ("step", pa.int64(), _ALWAYS),
    ("slot", pa.string(), _ALWAYS),
    ("amax_rank", pa.int32(), _ALWAYS),
    ("nonfinite_ranks", pa.int32(), _ALWAYS),
    ("nonfinite_rank", pa.int32(), _NULLABLE),
)
"""One row per slot and recorded step of a run of several ranks; see `numwatch.rank_rows.RankRow`.
"""

TABLES = {
    "tensors": TENSORS,
    "steps": STEPS,
    "updates": UPDATES,
    "states": STATES,
    "shadows": SHADOWS,
    "operations": OPERATIONS,
    "blocks": BLOCKS,
    "ranks": RANKS,
}
"""Name of a table, which is its folder's too, to its columns."""

ADDED_LATER = {"steps": ("skipped_optimizers", "loss_scales", "nonfinite_parameters")}
"""Columns that parts of an older numwatch lack; they read as nulls there."""
