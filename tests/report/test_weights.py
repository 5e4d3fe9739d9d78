"""Updates, optimizer state and shadow steps over many steps."""

import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from summary_builders import log_normal, rows, slot
from weight_builders import (
    bf16_true_run,
    fp16_true_run,
    parameter_slot,
    record,
    shadow,
    shadowed_run,
    state,
    update,
)

from numwatch import open_run, tensor_stats
from numwatch.record.pack import entries_table
from numwatch.report import summarize
from numwatch.report.state_figures import read_states
from numwatch.report.state_lines import ALARMING_RMS, states_lines
from numwatch.report.update_figures import read_updates
from numwatch.report.update_lines import updates_lines
from numwatch.snapshot import Snapshot, StepScalars
from numwatch.stats import Bounded


def table_of(name, *steps):
    """Pieces of a table, one a step."""
    return [
        entries_table([Snapshot(i, StepScalars(), **{name: entries})], 0, name)
        for i, entries in enumerate(steps)
    ]


def updates_of(*steps, low_format=None):
    return read_updates(table_of("updates", *steps), low_format)


def plain(lines):
    return [line.plain for line in lines]


class TestUpdates:
    def test_averages_count_every_update_once(self):
        first = update("a", nonzero=30, swallowed=1.0, edq_normalised=0.0, ratio=0.5)
        second = update("a", nonzero=10, swallowed=0.0, edq_normalised=1.0, ratio=0.1)
        other = update("b", nonzero=60, swallowed=0.25, edq_normalised=0.5)
        updates = updates_of((first, other), (second,))
        (storage,) = updates.storages
        assert (storage.updates, storage.parameters) == (100, 2)
        assert storage.swallowed == pytest.approx(0.45)
        assert storage.edq_normalised == pytest.approx(0.4)
        assert (storage.worst, storage.worst_swallowed) == ("a", pytest.approx(0.75))
        a, b = updates.parameters
        assert (a.parameter, a.steps, a.updates) == ("a", 2, 40)
        assert a.ratio == pytest.approx(0.4)
        assert (b.parameter, b.swallowed) == ("b", pytest.approx(0.25))

    def test_what_is_not_defined_weighs_nothing(self):
        nothing = dict.fromkeys(
            ("ratio", "swallowed", "stochastic_kept", "edq", "edq_normalised"), None
        )
        still = update("a", nonzero=0, **nothing)
        diverged = update("b", ratio=math.inf, edq_normalised=math.nan, swallowed=0.5)
        (storage,) = updates_of((still, diverged)).storages
        assert (storage.swallowed, storage.edq_normalised) == (0.5, None)
        assert updates_of((still,)).storages[0].swallowed is None
        assert updates_lines(updates_of((still,))) == []
        assert updates_of() is None

    @settings(max_examples=30, deadline=None)
    @given(
        entries=st.lists(
            st.builds(
                update,
                st.sampled_from(["a", "b", "c"]),
                st.sampled_from(["bf16", "fp16"]),
                nonzero=st.integers(0, 10**6),
                swallowed=st.none() | st.floats(0, 1),
                lost=st.booleans(),
            ),
            min_size=1,
            max_size=12,
        ),
        cut=st.integers(0, 12),
    )
    def test_pieces_and_their_order_do_not_matter(self, entries, cut):
        whole = updates_of(tuple(entries))
        pieces = updates_of(tuple(entries[cut:]), tuple(entries[:cut]))
        assert {(s.storage, s.lost, s.updates, s.parameters) for s in whole.storages} == {
            (s.storage, s.lost, s.updates, s.parameters) for s in pieces.storages
        }
        shares = {(s.storage, s.lost): s.swallowed for s in pieces.storages}
        for kind in whole.storages:
            weights = [
                (u.swallowed, u.nonzero)
                for u in entries
                if (u.storage, u.lost) == (kind.storage, kind.lost) and u.swallowed is not None
            ]
            count = sum(n for _, n in weights)
            if not count:
                assert kind.swallowed is shares[kind.storage, kind.lost] is None
                continue
            expected = pytest.approx(sum(s * n for s, n in weights) / count)
            assert kind.swallowed == expected
            assert shares[kind.storage, kind.lost] == expected

    def test_what_is_lost_comes_first_then_the_run_s_own_format(self):
        every = tuple(update("a", storage) for storage in ("e5m2", "fp16", "e4m3", "bf16"))
        order = [kind.storage for kind in updates_of(every, low_format="fp16").storages]
        assert order == ["fp16", "bf16", "e4m3", "e5m2"]
        order = [kind.storage for kind in updates_of(every, low_format=None).storages]
        assert order == ["bf16", "fp16", "e4m3", "e5m2"]
        lost = (*every, update("b", "e5m2", lost=True))
        kinds = [(kind.storage, kind.lost) for kind in updates_of(lost).storages]
        assert kinds[:2] == [("e5m2", True), ("bf16", False)]

    def test_lost_and_deferred_are_told_apart(self):
        lost = updates_of((update("a", lost=True, swallowed=0.981, edq_normalised=0.028),))
        assert plain(updates_lines(lost)) == [
            "updates     bf16 weights lost 98.1 % of their updates, EDQ 0.03",
            "            stochastic rounding would save 12.5 %",
        ]
        every = (update("a", deferred=0.1, swallowed=0.12), update("a", "fp16", swallowed=0.003))
        first, second = updates_lines(updates_of(every, low_format="bf16"))
        assert first.plain == (
            "updates     bf16 weights without FP32 masters would lose 12.0 % of updates, EDQ 0.75"
            " · fp16 0.3 %"
        )
        assert second.plain == (
            "            10.0 % deferred: the FP32 weights hold them, their bf16 copy stayed"
        )
        # In FP32 there is no copy that could stay behind.
        assert len(updates_lines(updates_of(every))) == 1

    def test_estimates_are_marked(self):
        guess = updates_of((update("a", lost=True, intended="estimate"),))
        assert "lost ~50.0 %" in updates_lines(guess)[0].plain
        assert guess.parameters[0].intended == "estimate"
        mixed = updates_of((update("a", intended="applied"),), (update("a", intended="exact"),))
        assert mixed.parameters[0].intended == "exact"

    def test_half_of_the_updates_lost_is_an_alarm(self):
        for share, style in ((0.4, set()), (0.5, {"bold red"})):
            line = updates_lines(updates_of((update("a", lost=True, swallowed=share),)))[0]
            assert {str(span.style) for span in line.spans} - {"dim"} == style


class TestStates:
    def read(self, *steps):
        return read_states(table_of("states", *steps))

    def test_shares_are_means_and_rms_is_the_largest(self):
        (figures,) = self.read(
            (state("a", below_eps=0.5, sampled=100, rms=1.0, vanished=None),),
            (state("a", below_eps=0.2, sampled=200, rms=7.0, eps=1e-8),),
            (state("a", below_eps=None, sampled=900, rms=math.nan),),
        )
        assert (figures.parameter, figures.state, figures.steps) == ("a", "exp_avg_sq", 3)
        assert figures.below_eps == pytest.approx(0.3)
        assert figures.vanished is None
        assert (figures.rms, figures.rms_step) == (7.0, 1)

    def test_hyperparameters_are_those_of_the_last_step(self):
        (figures,) = self.read((state("a", eps=1e-8),), (state("a", eps=1e-6),))
        assert figures.eps == 1e-6

    def test_healthy_state_is_no_line(self):
        calm = state("a", eps=1e-8, eps_stored=1e-8, decay=0.999, decay_stored=0.999, rms=1.0)
        fine = state("b", below_eps=0.009, vanished=0.0, rms=ALARMING_RMS - 0.01)
        assert states_lines(self.read((calm, fine))) == []

    @pytest.mark.parametrize(
        ("figures", "text"),
        [
            ({"eps": 1e-8, "eps_stored": 0.0}, "eps 1e-08 is 0 there"),
            (
                {"decay": 0.999, "decay_stored": 1.0},
                "decay 0.999 is 1 there, so it never decays",
            ),
            ({"vanished": 0.34}, "g² flushed for 34.0 %"),
            ({"below_eps": 0.01}, "sqrt(v) below eps for 1.0 %"),
        ],
    )
    def test_what_is_wrong_is_a_line(self, figures, text):
        (line,) = states_lines(self.read((state("a", dtype="float16", **figures),)))
        assert line.plain == f"state       exp_avg_sq in float16: {text}"

    def test_an_eps_of_0_was_meant(self):
        assert states_lines(self.read((state("a", eps=0.0, eps_stored=0.0),))) == []

    def test_the_largest_rms_names_its_parameter_and_step(self):
        steps = [(state("a", rms=1.0 + i), state("b", rms=1.0 + 4 * (i == 1))) for i in range(3)]
        (line,) = states_lines(self.read(*steps))
        assert line.plain.startswith("state       RMS_t 5 of b in step 1:")


class TestSlots:
    """A parameter's slots beside those of modules."""

    def summary(self, tmp_path, info, values, dtype):
        stats = tensor_stats(torch.tensor(values, dtype=dtype))
        module = slot("fc", "input", dtype="float32")
        entries = [(info, stats, None), (module, log_normal(0, 1.0), None)]
        record(tmp_path, [Snapshot(0, StepScalars(), rows(entries))], [info, module])
        return summarize(open_run(tmp_path))

    @pytest.mark.parametrize(
        ("role", "dtype", "values", "verdict"),
        [
            ("exp_avg_sq", "float32", [0.0] * 8, None),
            ("exp_avg_sq", "float32", [0.0] * 8 + [1e-45] * 8, None),
            ("exp_avg_sq", "float32", [1.0, math.inf], "overflow"),
            ("exp_avg_sq", "float16", [6e-8, 1e-7, 1.2e-7, 1.0], "underflow"),
            ("exp_avg_sq", "float16", [1.0, 2.0], None),
            ("update", "float32", [0.0] * 8, None),
            ("update", "float32", [math.nan], "overflow"),
        ],
    )
    def test_they_count_only_in_trouble(self, tmp_path, role, dtype, values, verdict):
        info = parameter_slot("fc.weight", role, dtype)
        summary = self.summary(tmp_path, info, values, getattr(torch, dtype))
        assert (summary.slots, summary.parameters) == (1, 1)
        assert sum(summary.verdicts.values()) == (1 if verdict is None else 2)
        found = {line.slot: line.verdict for line in summary.tensors}
        assert found == {"fc:input": "ok"} | ({info.slot: verdict} if verdict else {})

    def test_parameters_count_by_what_was_seen_of_them(self, tmp_path):
        fp16_true_run(tmp_path)
        summary = summarize(open_run(tmp_path))
        # One of the two has no row of its own, just a line of state.
        assert (summary.slots, summary.parameters) == (1, 2)


class TestShadows:
    def test_a_measured_share_stands_in_place_of_the_estimate(self, tmp_path):
        shadowed_run(tmp_path)
        summary = summarize(open_run(tmp_path))
        figures = {line.slot: line for line in summary.tensors}
        seen, unseen = figures["seen:grad_output"], figures["unseen:grad_output"]
        assert (seen.flushed_from, seen.flushed) == ("shadow", Bounded.exactly(100 / 800))
        assert unseen.flushed_from == "estimate"
        (line,) = [line for line in summary.shadows if line.slot == "seen:grad_output"]
        # The two slots hold the same tensor.
        assert line.estimate == unseen.flushed

    def test_counts_of_several_steps_add_up_and_errors_are_means(self, tmp_path):
        info = slot("fc", "grad_output")
        shadows = [
            shadow(info.slot, sampled=1000, zeros=0, flushed=500, relative_error=0.1),
            shadow(
                info.slot, sampled=1000, zeros=1000, flushed=0, relative_error=None, cosine=None
            ),
            shadow(info.slot, sampled=1000, zeros=500, flushed=100, relative_error=0.3, cosine=0.5),
        ]
        snapshots = [
            Snapshot(
                i, StepScalars(epoch=i), rows([(info, log_normal(0, 1.0), None)]), (), (), (s,)
            )
            for i, s in enumerate(shadows)
        ]
        record(tmp_path, snapshots, [info])
        run = open_run(tmp_path)
        (line,) = summarize(run).shadows
        assert (line.steps, line.sampled, line.zeros) == (3, 3000, 1500)
        assert line.flushed_share == pytest.approx(600 / 1500)
        assert line.relative_error == pytest.approx(0.2)
        assert line.cosine == pytest.approx((0.9999 + 0.5) / 2)
        # Of a gradient that is zero in FP32 too there is nothing to flush.
        (line,) = summarize(run, epoch=1).shadows
        assert (line.flushed_share, line.relative_error) == (None, None)
        assert summarize(run, epoch=1).tensors[0].flushed_from == "estimate"

    def test_a_gradient_flushed_whole_shows_it(self, tmp_path):
        info = slot("fc", "grad_output")
        gone = tensor_stats(torch.zeros(1000, dtype=torch.float16))
        measured = shadow(info.slot, zeros=0, flushed=1000)
        snapshot = Snapshot(0, StepScalars(), rows([(info, gone, None)]), (), (), (measured,))
        record(tmp_path, [snapshot], [info])
        (line,) = summarize(open_run(tmp_path)).tensors
        assert (line.verdict, line.flushed.value) == ("all zero", 1.0)


@pytest.mark.parametrize("write", [bf16_true_run, fp16_true_run, shadowed_run])
def test_the_json_holds_what_no_line_shows(tmp_path, write):
    write(tmp_path)
    summary = summarize(open_run(tmp_path))
    content = json.loads(json.dumps(summary.as_dict(), allow_nan=False))
    assert content.keys() == vars(summary).keys()
    assert len(content["updates"]["parameters"]) == len(summary.updates.parameters) > 0
    assert [line["parameter"] for line in content["states"]] == [
        line.parameter for line in summary.states
    ]
    assert [line["cosine"] for line in content["shadows"]] == [0.9999] * len(summary.shadows)
