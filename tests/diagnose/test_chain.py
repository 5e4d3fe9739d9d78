"""Findings in one order, each once, below what explains it."""

from dataclasses import replace

import pytest
from diagnosis_builders import flat
from hypothesis import given
from hypothesis import strategies as st

from numwatch.diagnose.chain import LEADS_TO, PHASE_OF, PHASES, chain, order_key
from numwatch.diagnose.finding import SEVERITIES, Finding
from numwatch.diagnose.rules import RULES


def finding(rule, step=0, severity="critical", **fields):
    given_ = {"slot": None, "evidence": (), "cause": "", "cure": "", "source": "policy"}
    return Finding(rule=rule, severity=severity, step=step, **{**given_, **fields})


_findings = st.lists(
    st.builds(
        finding,
        rule=st.sampled_from([*sorted(PHASE_OF), "rule-failed"]),
        step=st.integers(0, 3),
        severity=st.sampled_from(SEVERITIES),
        slot=st.sampled_from([None, "a:input", "b:input"]),
        order=st.none() | st.sampled_from([0.0, 0.5, 1.0]),
        cause=st.sampled_from(["x", "y"]),
    ),
    max_size=12,
)


def bare(each):
    return replace(each, consequences=())


@given(findings=_findings, data=st.data())
def test_the_chain_does_not_depend_on_the_order_of_what_it_is_given(findings, data):
    assert chain(findings) == chain(data.draw(st.permutations(findings)))


@given(findings=_findings)
def test_every_finding_is_there_once(findings):
    found = [bare(each) for each in flat(chain(findings))]
    assert sorted(found, key=order_key) == sorted(findings, key=order_key)


@given(findings=_findings)
def test_nothing_stands_below_what_came_later(findings):
    def check(each):
        for follower in each.consequences:
            assert order_key(bare(each)) <= order_key(bare(follower))
            assert follower.rule in LEADS_TO[each.rule]
            assert each.severity != "info" or follower.severity == "info"
            check(follower)

    roots = chain(findings)
    for root in roots:
        check(root)
    assert [order_key(bare(root)) for root in roots] == sorted(order_key(bare(r)) for r in roots)


@given(findings=_findings)
def test_a_root_has_no_cause_before_it(findings):
    roots = chain(findings)
    ordered = sorted(findings, key=order_key)
    for root in roots:
        before = ordered[: ordered.index(bare(root))]
        hurts = root.severity != "info"
        assert not any(
            root.rule in LEADS_TO.get(each.rule, ()) and (each.severity != "info" or not hurts)
            for each in before
        )


def test_a_nan_in_the_data_explains_all_that_follows():
    rules = ("loss-scale-collapse-nan", "nan-in-loss", "nan-in-data", "persistent-skips")
    (root,) = chain(finding(rule, step=3) for rule in rules)
    assert root.rule == "nan-in-data"
    assert len(list(flat([root]))) == 4


def test_what_came_before_the_nan_is_not_its_consequence():
    roots = chain([finding("vanishing-gradients", step=0), finding("nan-in-data", step=3)])
    assert [root.rule for root in roots] == ["vanishing-gradients", "nan-in-data"]


@pytest.mark.parametrize("rule", ["eps-zero", "activation-growth", "loss-scale-collapse-overflow"])
def test_no_computing_puts_a_nan_into_the_data(rule):
    """Only an earlier value that is not finite may have come there, where not all is watched."""
    roots = chain([finding(rule, step=0), finding("nan-in-data", step=3)])
    assert [root.rule for root in roots] == [rule, "nan-in-data"]
    (root,) = chain([finding("nan-in-forward", step=0), finding("nan-in-data", step=3)])
    assert root.rule == "nan-in-forward"


def test_the_phase_of_a_step_decides_before_the_data_flow():
    backward = finding("layer-flushed", order=1.0)
    forward = finding("forward-overflow", order=9.0)
    assert chain([backward, forward])[0].rule == "forward-overflow"


def test_an_info_explains_nothing_that_hurts():
    info = finding("sensitive-operation-low", severity="info")
    roots = chain([info, finding("forward-overflow", step=5)])
    assert [root.consequences for root in roots] == [(), ()]
    (root,) = chain([replace(info, severity="warning"), finding("forward-overflow", step=5)])
    assert root.rule == "sensitive-operation-low"


def test_a_whole_layer_comes_before_a_part_of_another():
    (root,) = chain([finding("gradient-underflow", order=1.0), finding("layer-flushed", order=9.0)])
    assert root.rule == "layer-flushed"


def test_each_rule_has_a_phase_and_the_table_knows_no_other_rule():
    assert set(PHASE_OF.values()) == set(PHASES)
    known = {rule.__name__.replace("_", "-") for rule in RULES}
    mentioned = set(LEADS_TO).union(*LEADS_TO.values())
    assert known <= set(PHASE_OF)
    assert mentioned <= set(PHASE_OF)


@pytest.mark.parametrize("rule", sorted(PHASE_OF))
def test_the_table_is_about_rules_that_exist(rule):
    assert rule in {each.__name__.replace("_", "-") for each in RULES}


def test_an_overflow_is_not_blamed_on_a_state_that_never_decays():
    rules = [("state-never-decays", 0, "warning"), ("forward-overflow", 1, "critical")]
    roots = chain(finding(rule, step, severity) for rule, step, severity in rules)
    assert [root.rule for root in roots] == ["state-never-decays", "forward-overflow"]
