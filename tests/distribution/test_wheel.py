"""What is shipped: built from the tree, installed into an empty environment, imported, typed."""

import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = {"numwatch": ROOT / "numwatch", "numwatch/callbacks": ROOT / "callbacks"}


def run(*words, cwd):
    done = subprocess.run(
        [str(word) for word in words],
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
        timeout=280,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def shipped():
    """Returns the files of the tree that a wheel holds, by the names that they have there."""
    return {
        f"{target}/{path.relative_to(source).as_posix()}"
        for target, source in SOURCES.items()
        for path in source.rglob("*")
        if path.suffix == ".py" or path.name == "py.typed"
    }


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The folder with the source distribution, and the wheel that was built from it."""
    tree = tmp_path_factory.mktemp("tree")
    # A copy: what an older build left in the tree is no part of the new one.
    for name in ("numwatch", "callbacks"):
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "MANIFEST.in", "README.md", "CHANGELOG.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    out = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", out, tree, cwd=tree)
    return out


@pytest.fixture(scope="module")
def fresh(built, tmp_path_factory):
    """The Python of an environment with the wheel alone; others' packages are lent to it."""
    place = tmp_path_factory.mktemp("fresh")
    run(sys.executable, "-m", "venv", "--without-pip", place, cwd=place)
    python = place / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    (wheel,) = built.glob("*.whl")
    pip = (sys.executable, "-m", "pip", "--python", python, "install", "--quiet")
    run(*pip, "--no-deps", "--no-index", wheel, cwd=place)
    site = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=place)
    # A line of a .pth adds a folder but reads none of its .pth, so the editable numwatch stays out.
    (Path(site.strip()) / "lent.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python


@pytest.mark.slow
def test_wheel_holds_every_package_and_nothing_else(built):
    (wheel,) = built.glob("*.whl")
    files = [name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name]
    assert set(files) == shipped()
    assert len(files) == len(set(files))
    assert {"numwatch/py.typed", "numwatch/callbacks/py.typed"} <= set(files)


@pytest.mark.slow
def test_source_distribution_holds_what_a_build_needs(built):
    (archive,) = built.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        names = {name.partition("/")[2] for name in tar.getnames()}
    modules = {name.replace("numwatch/callbacks/", "callbacks/") for name in shipped()}
    others = {"pyproject.toml", "README.md", "CHANGELOG.md", "LICENSE"}
    assert modules | others <= names
    assert not any(name.startswith(("tests", "benchmarks", "examples")) for name in names)


WITHOUT_EXTRAS = """
import sys
from importlib import metadata
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

needed, waiting = set(), ["numwatch"]
while waiting:
    name = canonicalize_name(waiting.pop())
    if name in needed:
        continue
    needed.add(name)
    try:
        requirements = map(Requirement, metadata.requires(name) or ())
    except metadata.PackageNotFoundError:
        continue  # of another platform
    waiting += [
        one.name for one in requirements
        if one.marker is None or one.marker.evaluate({"extra": ""})
    ]
refused = {
    module
    for module, owners in metadata.packages_distributions().items()
    if not needed & {canonicalize_name(owner) for owner in owners}
}

class Without:
    # A finder that does not find what is refused.

    def __init__(self, finder):
        self._finder = finder

    def find_distributions(self, *context):
        find = getattr(self._finder, "find_distributions", lambda *_: ())
        return [one for one in find(*context) if canonicalize_name(one.name) in needed]

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in refused:
            return None
        return self._finder.find_spec(name, path, target)

sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]
for module in ("torchao", "lightning", "transformers"):
    assert module in refused, module

import numwatch
import numwatch.callbacks
import numwatch.cli.app
print(numwatch.__file__, numwatch.callbacks.__file__, numwatch.__version__, sep="\\n")
"""


@pytest.mark.slow
def test_wheel_works_in_an_environment_without_extras(fresh, tmp_path):
    core, callbacks, version = run(fresh, "-c", WITHOUT_EXTRAS, cwd=tmp_path).split()
    site = fresh.parents[1]
    assert Path(core).is_relative_to(site)
    assert Path(callbacks).is_relative_to(site)
    assert version in (ROOT / "pyproject.toml").read_text()
    assert "e4m3" in run(fresh.with_name("numwatch"), "formats", cwd=tmp_path)


TYPED = """
import numwatch
from numwatch.callbacks import NumericsMonitor

monitor = NumericsMonitor(every_n_steps=5)
NumericsMonitor(every_n_steps="five")  # type: ignore[arg-type]
run: numwatch.Run = numwatch.open_run("runs/a")
steps: int = run.path  # type: ignore[assignment]
plan: numwatch.Plan = numwatch.recommend(run, target="fp8")
finding: str = numwatch.diagnose(run)  # type: ignore[assignment]
"""


@pytest.mark.slow
def test_types_are_shipped(fresh, tmp_path):
    """In strict mode an `ignore` without an error is one: were numwatch untyped, there was none."""
    (tmp_path / "user.py").write_text(TYPED)
    lines = ["[mypy]", "strict = true", f"cache_dir = {tmp_path / 'cache'}"]
    for library in ("torch", "pyarrow", "pytorch_lightning", "lightning", "numpy", "rich", "typer"):
        lines += [f"[mypy-{library}.*]", "follow_imports = skip"]
    (tmp_path / "mypy.ini").write_text("\n".join(lines))
    mypy = (sys.executable, "-m", "mypy", "--python-executable", fresh)
    assert "Success" in run(*mypy, "user.py", cwd=tmp_path)
