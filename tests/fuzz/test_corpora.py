"""What the fuzzers kept, and once found, read again: a result or one clear line, within limits."""

from pathlib import Path

import pytest
from fuzz_engine import within_limits
from fuzz_targets import TARGETS, made

CORPORA = Path(__file__).parent / "corpora"


@pytest.mark.parametrize("name", TARGETS)
def test_inputs_of_the_fuzzers_end_in_a_result_or_a_line(name, tmp_path):
    target = made(name, tmp_path)
    kept = sorted((CORPORA / name).iterdir())
    assert kept
    for data in [*target.seeds(), *(path.read_bytes() for path in kept)]:
        within_limits(target, data)


def test_seeds_are_in_order(tmp_path):
    """A fuzzer that starts from what is refused tests nothing but the refusal."""
    for name in ("manifest", "plan", "specs", "capsule-facts"):
        target = made(name, tmp_path / name)
        (tmp_path / name).mkdir(exist_ok=True)
        assert "refused: " not in target.run(target.seeds()[0])


def test_corpora_are_small():
    sizes = [path.stat().st_size for path in CORPORA.rglob("*") if path.is_file()]
    assert sum(sizes) < 1_000_000
