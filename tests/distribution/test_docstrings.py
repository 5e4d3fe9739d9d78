"""The examples in docstrings run, and print what they say."""

import doctest
import importlib
import warnings
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
PACKAGES = {"numwatch": ROOT / "numwatch", "numwatch.callbacks": ROOT / "callbacks"}


def modules_with_examples():
    for package, folder in PACKAGES.items():
        for path in sorted(folder.rglob("*.py")):
            if ">>> " in path.read_text():
                yield ".".join((package, *path.relative_to(folder).with_suffix("").parts))


EXAMPLES = list(modules_with_examples())


def test_the_entrances_have_examples():
    owners = {"numwatch.loop", "numwatch.stats.kernels", "numwatch.callbacks.monitor"}
    assert owners <= set(EXAMPLES)


@pytest.mark.parametrize("name", EXAMPLES)
def test_examples_of(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where an example leaves what it does not name a place for
    module = importlib.import_module(name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Lightning's of set-ups that an example keeps short
        given = {"tmp": tmp_path, "model": torch.nn.Linear(2, 2)}
        result = doctest.testmod(module, extraglobs=given)
    assert result.attempted
    assert not result.failed
