"""A stranger's capsule: nothing of it runs, and it takes no more memory than it is."""

import io
import json
import os
import pickle
import shutil
import time
import zipfile

import pytest
import torch
from peak_memory import at_most_mib
from security_harness import run_that_failed

from numwatch import load_capsule
from numwatch.record import RecordError


@pytest.fixture(scope="module")
def failed(tmp_path_factory):
    return run_that_failed(tmp_path_factory.mktemp("failed"))


@pytest.fixture
def capsule(failed, tmp_path):
    shutil.copytree(failed, tmp_path / "run")
    return tmp_path / "run" / "numwatch" / "capsule"


def refusal(capsule):
    with pytest.raises(RecordError) as raised:
        load_capsule(capsule.parent)
    text = str(raised.value)
    assert "\n" not in text
    assert "weights_only" not in text
    return text


class Evil:
    """Makes a file where it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (os.system, (f"touch {self.path}",))


def with_pickle(path, content):
    """Puts another pickle into an archive of torch's."""
    sink = io.BytesIO()
    with zipfile.ZipFile(path) as archive, zipfile.ZipFile(sink, "w") as written:
        for name in archive.namelist():
            kept = content if name.endswith("data.pkl") else archive.read(name)
            written.writestr(name, kept)
    path.write_bytes(sink.getvalue())


def test_the_capsule_is_in_order(capsule):
    assert load_capsule(capsule.parent).facts["step"] == 2


@pytest.mark.parametrize("way", ["torch.save", "pickle", "archive"])
def test_a_pickle_that_runs_something_runs_nothing(way, capsule, tmp_path):
    evil, state = Evil(tmp_path / "made"), capsule / "state.pt"
    if way == "torch.save":
        torch.save({"batch": evil}, state)
    elif way == "pickle":
        state.write_bytes(pickle.dumps({"batch": evil}))
    else:
        with_pickle(state, pickle.dumps({"batch": evil}, protocol=2))
    assert "can't be read" in refusal(capsule)
    assert not (tmp_path / "made").exists()


CALL = b"\x80\x02c%s\n%s\n(%stR."


@pytest.mark.parametrize(
    "content",
    [
        CALL % (b"__builtin__", b"bytearray", b"\x8a\x08\x00\x00\x00\x00\x04\x00\x00\x00"),
        CALL % (b"torch", b"FloatTensor", b"\x8a\x08\x00\x00\x00\x00\x04\x00\x00\x00"),
        CALL % (b"torch", b"Tensor", b"\x8a\x08\x00\x00\x00\x00\x04\x00\x00\x00"),
    ],
    ids=["bytearray", "FloatTensor", "Tensor"],
)
def test_calls_that_only_take_memory_are_not_made(content, capsule):
    """16 GiB and more; all three are among what `weights_only` lets through."""
    with_pickle(capsule / "state.pt", content)
    with at_most_mib(100):
        assert "which numwatch never keeps" in refusal(capsule)


def test_a_zip_bomb_is_not_unpacked(capsule):
    state = capsule / "state.pt"
    with zipfile.ZipFile(state, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(200_000_000))
        archive.writestr("archive/version", "3\n")
    assert state.stat().st_size < 1_000_000
    with at_most_mib(100):
        assert "its archive is compressed" in refusal(capsule)


def test_members_that_overlap_are_not_unpacked(capsule):
    """Many entries of the directory name the same bytes of the file."""
    state, sink = capsule / "state.pt", io.BytesIO()
    with zipfile.ZipFile(sink, "w") as archive:
        archive.writestr("archive/data.pkl", bytes(1_000_000))
        for i in range(1000):
            copied = zipfile.ZipInfo(f"archive/data/{i}")
            kept = archive.filelist[0]
            for name in ("file_size", "compress_size", "header_offset", "CRC"):
                setattr(copied, name, getattr(kept, name))
            archive.filelist.append(copied)
    state.write_bytes(sink.getvalue())
    assert "unfolds into more than it is" in refusal(capsule)


def test_what_is_no_archive_is_refused_before_torch_sees_it(capsule, monkeypatch):
    torch.save({"batch": torch.ones(3)}, capsule / "state.pt", _use_new_zipfile_serialization=False)
    monkeypatch.setattr(torch, "load", None)
    assert "state.pt is damaged" in refusal(capsule)


def nested(depth):
    value = [1]
    for _ in range(depth):
        value = [value]
    return value


def doubled(times):
    """A list of a list of ... twice each: small on disk, 2^times to go through."""
    value = [1]
    for _ in range(times):
        value = [value, value]
    return value


def test_containers_that_unfold_without_end_are_refused_quickly(capsule):
    itself = []
    itself.append(itself)
    for batch, reason in (
        (nested(300), "nested too deep"),
        (itself, "nested too deep"),
        (doubled(60), "unfolds into more|nested"),
        (torch.ones(1).expand(2**40), "unfolds into more"),
        (torch.empty(3, device="meta"), "tensor on meta"),
    ):
        torch.save({"batch": batch}, capsule / "state.pt")
        begun = time.process_time()
        with pytest.raises(RecordError, match=reason):
            load_capsule(capsule.parent)
        assert time.process_time() - begun < 30


def test_facts_without_end_are_refused(capsule):
    (capsule / "capsule.json").write_bytes(b'{"step": 1, "notes": ["' + b"x" * (17 << 20) + b'"]}')
    assert "more than 16 MiB" in refusal(capsule)


@pytest.mark.skipif(os.name != "posix", reason="links and pipes of POSIX")
@pytest.mark.parametrize("name", ["state.pt", "capsule.json"])
@pytest.mark.parametrize("kind", ["link", "pipe"])
def test_files_that_lead_elsewhere_are_refused(kind, name, capsule, tmp_path):
    path = capsule / name
    path.rename(tmp_path / "elsewhere")
    if kind == "link":
        path.symlink_to(tmp_path / "elsewhere")
    else:
        os.mkfifo(path)
    assert ("links are not followed" if kind == "link" else "no plain file") in refusal(capsule)


@pytest.mark.skipif(os.name != "posix", reason="links of POSIX")
def test_a_capsule_elsewhere_is_none(capsule, tmp_path):
    capsule.rename(tmp_path / "elsewhere")
    capsule.symlink_to(tmp_path / "elsewhere")
    assert "no capsule in" in refusal(capsule)


def test_notes_are_texts(capsule):
    facts = json.loads((capsule / "capsule.json").read_text())
    (capsule / "capsule.json").write_text(json.dumps({**facts, "notes": [3]}))
    assert "its notes is damaged" in refusal(capsule)
