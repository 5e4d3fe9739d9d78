"""A run leaves nothing behind, and the soak sees it when one does."""

import threading

import pytest
from soak import LONG, PER, growth, leaks, sampled_at, soak

STEPS = 2_000


def test_samples_are_taken_at_one_percent_and_at_each_tenth():
    assert sampled_at(100_000) == [1_000, *range(10_000, 100_001, 10_000)]


def test_growth_is_the_median_slope_from_the_second_sample_on():
    held = {"files": 5.0, "threads": 2.0}
    samples = [
        {"step": 10, "objects": 0.0, "rss_mib": 0.0, **held},
        {"step": 100, "objects": 1_000.0, "rss_mib": 300.0, **held},
        {"step": 600, "objects": 1_150.0, "rss_mib": 340.0, **held},
        {"step": 1_100, "objects": 1_300.0, "rss_mib": 300.0, **held},
    ]
    assert growth(samples) == {"rss_mib": 0, "files": 0, "threads": 0, "objects": 300 * PER / 1_000}


def test_resident_memory_is_judged_in_long_runs_alone():
    found = {"rss_mib": 50.0, "files": 0.0, "threads": 0.0, "objects": 0.0}
    assert leaks(found, LONG - 1) == []
    assert [line.split()[0] for line in leaks(found, LONG)] == ["rss_mib"]


@pytest.mark.slow
def test_a_run_leaves_no_file_thread_or_object_behind(tmp_path):
    assert leaks(growth(soak(STEPS, tmp_path)), STEPS) == []


class Leak:
    """Keeps something of every hundredth step."""

    def __init__(self, tmp_path):
        self.kept, self._path, self._end = [], tmp_path / "leak", threading.Event()

    def file(self, step):
        if step % 100 == 0:
            self.kept.append(self._path.open("w"))

    def thread(self, step):
        if step % 100 == 0:
            self.kept.append(threading.Thread(target=self._end.wait))
            self.kept[-1].start()

    def objects(self, step):
        self.kept.append([step])

    def close(self):
        self._end.set()
        for leaked in self.kept:
            if isinstance(leaked, threading.Thread):
                leaked.join()
            elif not isinstance(leaked, list):
                leaked.close()


@pytest.mark.parametrize(
    ("kind", "told"), [("file", "files"), ("thread", "threads"), ("objects", "objects")]
)
def test_a_planted_leak_is_seen(kind, told, tmp_path):
    leak = Leak(tmp_path)
    try:
        found = leaks(growth(soak(400, tmp_path, each=getattr(leak, kind))), 400)
    finally:
        leak.close()
    assert any(line.startswith(f"{told} grew") for line in found)
