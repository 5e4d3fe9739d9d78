"""The charts of TensorBoard's custom scalars tab, amax between the limits of its format first."""

from collections.abc import Iterable, Mapping

from tensorboard.plugins.custom_scalar.layout_pb2 import (
    Category,
    Chart,
    Layout,
    MarginChartContent,
    MultilineChartContent,
)

from numwatch.report.tb_tags import (
    PARAMETER_GROUP,
    ROLE_GROUP,
    SHADOW_GROUP,
    STATE_GROUP,
    STEP_GROUP,
    TENSOR_GROUP,
    UPDATE_GROUP,
    WINDOW_GROUP,
    domain_of,
    module_of,
    role_group,
    tensor_group,
)


def layout(slots: Iterable[str], named: Iterable[str]) -> Layout:
    """Returns the charts: one for each role among `slots`, one for each slot in `named`.

    Slots named later in the run show in the charts that select by pattern.
    """
    one_a_role = {domain_of(slot): slot for slot in slots}
    margin = "numwatch: log2 amax between smallest normal and largest value"
    return Layout(
        category=[
            _category(
                "numwatch: loss scale",
                {
                    "loss scale (log2)": _lines(f"{STEP_GROUP}/loss_scale_log2"),
                    "skipped steps": _lines(f"{STEP_GROUP}/skipped_steps_total"),
                    "loss scale in the window that FP16 gradients fit (log2)": _margin(
                        WINDOW_GROUP, "loss_scale_log2", "low_log2", "high_log2"
                    ),
                },
            ),
            _category(
                "numwatch: updates",
                {
                    "swallowed": _lines(f"{UPDATE_GROUP}/[^/]+/swallowed"),
                    "EDQ": _lines(f"{UPDATE_GROUP}/[^/]+/edq_normalised"),
                    "update ratio (log2)": _lines(f"{UPDATE_GROUP}/ratio_log2_.+"),
                    "swallowed of named parameters": _lines(f"{PARAMETER_GROUP}/.+/swallowed"),
                },
            ),
            _category(
                "numwatch: optimizer state",
                {
                    "largest RMS_t": _lines(f"{STATE_GROUP}/rms_t_worst"),
                    "below eps, g^2 flushed": _lines(f"{STATE_GROUP}/(below_eps|vanished)_worst"),
                },
            ),
            _category(
                "numwatch: shadow steps",
                {
                    "flushed": _lines(f"{SHADOW_GROUP}/[^/]+/flushed"),
                    "relative error": _lines(f"{SHADOW_GROUP}/[^/]+/relative_error_median"),
                },
            ),
            _category(
                "numwatch: worst slot of each role",
                {
                    "headroom (bits)": _lines(f"{ROLE_GROUP}/[^/]+/headroom_bits_worst"),
                    "flushed": _lines(f"{ROLE_GROUP}/[^/]+/flushed(_estimate)?_worst"),
                    "saturated": _lines(f"{ROLE_GROUP}/[^/]+/saturated_worst"),
                },
            ),
            _category(
                f"{margin}, by role",
                {
                    domain: _margin(role_group(slot), "amax_log2_worst")
                    for domain, slot in one_a_role.items()
                },
            ),
            _category(
                f"{margin}, by tensor",
                {
                    f"{module_of(slot)} {domain_of(slot)}": _margin(tensor_group(slot), "amax_log2")
                    for slot in named
                },
            ),
            _category(
                "numwatch: named tensors",
                {
                    "headroom (bits)": _lines(f"{TENSOR_GROUP}/.+/headroom_bits"),
                    "flushed": _lines(f"{TENSOR_GROUP}/.+/flushed(_estimate)?"),
                },
            ),
        ]
    )


def _category(title: str, charts: Mapping[str, Chart]) -> Category:
    for name, chart in charts.items():
        chart.title = name
    return Category(title=title, chart=charts.values())


def _lines(pattern: str) -> Chart:
    # TensorBoard matches a pattern at the start of a tag only.
    return Chart(multiline=MultilineChartContent(tag=[f"{pattern}$"]))


def _margin(
    group: str, value: str, lower: str = "smallest_normal_log2", upper: str = "max_log2"
) -> Chart:
    series = MarginChartContent.Series(
        value=f"{group}/{value}", lower=f"{group}/{lower}", upper=f"{group}/{upper}"
    )
    return Chart(margin=MarginChartContent(series=[series]))
