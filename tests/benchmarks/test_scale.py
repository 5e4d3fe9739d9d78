"""Growth exponents in closed form, and one real point."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from scale import claims, exponents, slope

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "scale_point.py"


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0, 2.0])
def test_the_exponent_of_a_power_law_is_its_power(power):
    x = [10, 100, 1_000, 10_000]
    assert slope(x, [3 * n**power for n in x]) == pytest.approx(power)


def test_exponents_leave_out_points_that_a_fixed_cost_rules():
    rows = [
        {"slots": n, "full_ms": n + 50, "amax_ms": 1.0, "off_ms": 0.0} for n in (10, 10**5, 10**7)
    ]
    assert exponents(rows, "slots", 1_000) == {"full_ms": 1.0, "amax_ms": 0.0}


def test_a_claim_holds_by_time_and_memory_both():
    row = {"slots": 9_996, "full_ms": 99.0, "peak_mib": 94.0}
    assert claims([row])["holds"]
    assert not claims([{**row, "full_ms": 101.0}])["holds"]
    assert not claims([{**row, "peak_mib": 96.0}])["holds"]
    assert claims([{**row, "slots": 1_000}]) is None


@pytest.mark.slow
def test_a_point_counts_seven_rows_to_a_linear():
    words = [sys.executable, SCRIPT, "--slots", "21", "--rounds", "2", "--threads", "1"]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["slots"] in (20, 21)  # the first Linear's input has no gradient
    assert 0 < found["off_ms"] < found["full_ms"]
    assert found["rss_mib"] <= found["peak_mib"]
    assert 0 < found["bytes_per_row"] < found["record_bytes_per_row"]
