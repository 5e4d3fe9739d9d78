"""What a target of the fuzzer is, and those that are a file of a record."""

import json
import random
import shutil
from pathlib import Path

from fuzz_mutation import mutated_bytes, mutated_value
from fuzz_records import make_base, read_all, refused

import numwatch


class Target:
    """One reader under test.

    Attributes:
        name: What the command line calls it.
    """

    name = ""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def seeds(self) -> list[bytes]:
        """Inputs that are in order."""
        raise NotImplementedError

    def mutate(self, rng: random.Random, data: bytes, other: bytes) -> bytes:
        """Returns another input made of two."""
        raise NotImplementedError

    def run(self, data: bytes) -> str:
        """Reads an input; returns what came of it. Whatever it raises is a finding."""
        raise NotImplementedError


class OfRecord(Target):
    """A file of a record."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.record = directory / "numwatch"
        if not self.record.is_dir():
            make_base(directory)
            shutil.copytree(self.record, directory / "kept")
        self.base = numwatch.open_run(directory / "kept")

    def put(self, path: Path, data: bytes) -> None:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)

    def restore(self, path: Path) -> None:
        kept = self.directory / "kept" / path.relative_to(self.record)
        if kept.exists():
            shutil.copyfile(kept, path)
        else:
            path.unlink(missing_ok=True)

    def read_with(self, path: Path, data: bytes, choice: int) -> str:
        self.put(path, data)
        try:
            return refused(lambda: read_all(self.record, self.base, choice))
        finally:
            self.restore(path)


def mutated_json(rng: random.Random, data: bytes, other: bytes) -> bytes:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        value = None
    if value is None or rng.random() < 0.1:
        return mutated_bytes(rng, data, other)
    try:
        return json.dumps(mutated_value(rng, value)).encode()
    except (ValueError, RecursionError):  # too deep for the writer, which is no reader's matter
        return b"[" * 100_000
