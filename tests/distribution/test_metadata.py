"""What `pyproject.toml` says of the tree, compared with the tree."""

import sys
from pathlib import Path

import pytest

if sys.version_info < (3, 11):
    pytest.skip("Python 3.10 reads no TOML", allow_module_level=True)

import tomllib

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def packages_of(folder, name):
    return {
        ".".join((name, *path.parent.relative_to(ROOT / folder).parts))
        for path in (ROOT / folder).rglob("__init__.py")
    }


def test_every_package_of_the_tree_is_listed():
    listed = PROJECT["tool"]["setuptools"]["packages"]
    tree = packages_of("numwatch", "numwatch") | packages_of("callbacks", "numwatch.callbacks")
    assert set(listed) == tree
    assert len(listed) == len(set(listed))


def test_every_folder_with_code_is_a_package():
    for folder in ("numwatch", "callbacks"):
        for path in (ROOT / folder).rglob("*.py"):
            assert (path.parent / "__init__.py").is_file(), path


def test_typed_packages_carry_their_mark():
    marks = PROJECT["tool"]["setuptools"]["package-data"]
    assert marks == {"numwatch": ["py.typed"], "numwatch.callbacks": ["py.typed"]}
    assert all((ROOT / name / "py.typed").is_file() for name in ("numwatch", "callbacks"))
