"""TensorBoard's own messages: scalars, exponent histograms and chart layouts as one event.

The only place that reaches into `SummaryWriter`. Its `add_histogram` is not used: it copies the
whole tensor, casts BF16 to FP16 and drops non-finite values before it bins.
"""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from tensorboard.compat.proto.summary_pb2 import HistogramProto, Summary
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout
from tensorboard.plugins.custom_scalar.metadata import CONFIG_SUMMARY_TAG, create_summary_metadata

from numwatch.stats.binades import BINADE_MIN

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


def scalar_summary(scalars: Mapping[str, float]) -> Summary:
    """Returns the values under their tags."""
    return Summary(value=[Summary.Value(tag=t, simple_value=v) for t, v in scalars.items()])


def log2_histogram(tag: str, binades: npt.NDArray[np.int64]) -> Summary:
    """Returns the histogram of log2 |x|, one bucket a binade, without the empty outer ones.

    The outer limits are whole exponents, not log2 of the extremes: TensorBoard cuts the first and
    the last bucket off there, down to no width where all of them are one power of two. Moments
    take every element for the middle of its binade.

    Args:
        tag: Its tag.
        binades: Counts [BINADES] of the binades from BINADE_MIN on; all zero gives no value.
    """
    filled = np.flatnonzero(binades)
    if len(filled) == 0:
        return Summary()
    first, last = int(filled[0]), int(filled[-1])
    counts = binades[first : last + 1]
    left = np.arange(first, last + 1) + float(BINADE_MIN)
    value = Summary.Value(
        tag=tag,
        histo=HistogramProto(
            min=left[0],
            max=left[-1] + 1,
            num=counts.sum(),
            sum=counts @ (left + 0.5),
            sum_squares=counts @ (left + 0.5) ** 2,
            bucket_limit=left + 1,
            bucket=counts,
        ),
    )
    return Summary(value=[value])


def layout_summary(layout: Layout) -> Summary:
    """Returns the layout of the custom scalars tab; of several in a run the last counts."""
    tensor = TensorProto(
        dtype="DT_STRING",
        string_val=[layout.SerializeToString()],
        tensor_shape=TensorShapeProto(),
    )
    value = Summary.Value(tag=CONFIG_SUMMARY_TAG, tensor=tensor, metadata=create_summary_metadata())
    return Summary(value=[value])


def write_event(writer: "SummaryWriter", summaries: Iterable[Summary], step: int) -> None:
    """Writes all summaries as one event, which is far faster than one event a value."""
    joined = Summary()
    for summary in summaries:
        joined.value.extend(summary.value)
    if joined.value:
        # `add_scalar` and its like write an event each; nothing public takes a whole summary.
        untyped: Any = writer
        untyped._get_file_writer().add_summary(joined, step)  # noqa: SLF001
