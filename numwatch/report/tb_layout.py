"""The charts of TensorBoard's custom scalars tab: amax between the limits of its format."""

from collections.abc import Iterable, Mapping

from tensorboard.plugins.custom_scalar.layout_pb2 import (
    Category,
    Chart,
    Layout,
    MarginChartContent,
    MultilineChartContent,
)

from numwatch.report.tb_tags import (
    ROLE_GROUP,
    STEP_GROUP,
    TENSOR_GROUP,
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


def _margin(group: str, amax: str) -> Chart:
    series = MarginChartContent.Series(
        value=f"{group}/{amax}",
        lower=f"{group}/smallest_normal_log2",
        upper=f"{group}/max_log2",
    )
    return Chart(margin=MarginChartContent(series=[series]))
