"""Both files of a capsule, and the failed step run again."""

import io
import json
import random
import zipfile
from pathlib import Path

import torch
from fuzz_base import OfRecord, mutated_json
from fuzz_mutation import NUMBERS, TEXTS, mutated_bytes, odd
from fuzz_records import refused

from numwatch.errors import printable
from numwatch.record.capsule import load_capsule
from numwatch.reproduce import lines, reproduce


class CapsuleFactsTarget(OfRecord):
    """`capsule.json`, and the step run again where it is in order."""

    name = "capsule-facts"
    file = "capsule.json"
    SCRIPT = (
        "import torch\n"
        "class Model(torch.nn.Sequential):\n"
        "    def training_step(self, batch, index):\n"
        "        return self(batch).float().square().mean()\n"
        "def make():\n"
        "    return Model(torch.nn.Linear(8, 32), torch.nn.ReLU(), torch.nn.Linear(32, 4))\n"
    )

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.script = directory / "fuzz_model.py"
        self.script.write_text(self.SCRIPT)

    def seeds(self) -> list[bytes]:
        facts = json.loads((self.record / "capsule" / self.file).read_bytes())
        return [json.dumps({**facts, "scalars": facts["scalars"][:1]}).encode()]

    mutate = staticmethod(mutated_json)  # type: ignore[assignment]

    def run(self, data: bytes) -> str:
        path = self.record / "capsule" / self.file
        self.put(path, data)
        try:
            return refused(self._reproduced)
        finally:
            self.restore(path)
            torch.set_default_dtype(torch.float32)

    def _reproduced(self) -> str:
        capsule = load_capsule(self.record)
        assert all(isinstance(note, str) for note in capsule.notes)
        found = reproduce(self.record, f"{self.script}:make")
        assert all(printable(line).isprintable() for line in lines(found))
        return "reproduced: " + " ".join(one.outcome for one in found.compared)


class CapsuleStateTarget(CapsuleFactsTarget):
    """`state.pt`."""

    name = "capsule-state"
    file = "state.pt"

    def seeds(self) -> list[bytes]:
        path = self.record / "capsule" / self.file
        state = torch.load(path, weights_only=True)
        few = {name: state[name] for name in ("batch", "module", "random", "scaler")}
        return [_saved(few), path.read_bytes()]

    def mutate(self, rng: random.Random, data: bytes, other: bytes) -> bytes:  # type: ignore[override]
        kind = rng.random()
        if kind < 0.15:
            return mutated_bytes(rng, data, other)
        if kind < 0.45:
            return _mutated_zip(rng, data)
        try:
            state = torch.load(io.BytesIO(data), weights_only=True)
            return _saved(_mutated_state(rng, state))
        except Exception:  # noqa: BLE001  # an input that can't be read is mutated as bytes
            return _mutated_zip(rng, data)


def _saved(state: object) -> bytes:
    sink = io.BytesIO()
    torch.save(state, sink)
    return sink.getvalue()


def _mutated_state(rng: random.Random, state: object) -> object:
    if isinstance(state, torch.Tensor) or not isinstance(state, dict | list | tuple) or not state:
        return _odd_state(rng, state)
    if rng.random() < 0.1:
        return _odd_state(rng, state)
    if isinstance(state, dict):
        key = rng.choice(list(state))
        changed = dict(state)
        if rng.random() < 0.15:
            del changed[key]
        elif rng.random() < 0.1:
            changed[rng.choice((*TEXTS[:12], 3, None))] = changed.pop(key)
        else:
            changed[key] = _mutated_state(rng, state[key])
        return changed
    at = rng.randrange(min(len(state), 4))
    changed = list(state)
    if rng.random() < 0.2:
        del changed[at]
    else:
        changed[at] = _mutated_state(rng, changed[at])
    return changed if isinstance(state, list) or rng.random() < 0.1 else tuple(changed)


def _odd_state(rng: random.Random, value: object) -> object:
    dtypes = (torch.float16, torch.int64, torch.bool, torch.complex64, torch.float8_e4m3fn)
    ways = [
        lambda: torch.randn(rng.choice((0, 1, 8))).to(rng.choice(dtypes)),
        lambda: torch.zeros(1).expand(rng.choice((8, 2**20, 2**40))),
        lambda: torch.eye(4).to_sparse(),
        lambda: torch.empty(3, device="meta"),
        lambda: torch.quantize_per_tensor(torch.ones(4), 0.1, 0, torch.qint8),
        lambda: torch.nn.Parameter(torch.ones(8, 32)),
        lambda: odd(rng, 2),
        lambda: [value, value],
        lambda: {"a": value},
        lambda: b"bytes",
        lambda: bytearray(4),
        lambda: {1, 2},
        lambda: torch.Size([2]),
        lambda: None,
    ]
    if isinstance(value, torch.Tensor):
        ways += [
            lambda: value[..., :-1] if value.dim() else value,
            lambda: value.reshape(-1),
            lambda: value.to(rng.choice(dtypes)),
            lambda: value[None],
            lambda: value.t() if value.dim() == 2 else value,
        ] * 2
    if isinstance(value, int | float):
        ways += [lambda: rng.choice(NUMBERS)] * 4
    return rng.choice(ways)()


def _mutated_zip(rng: random.Random, data: bytes) -> bytes:
    """Mutates members of an archive, the pickle most of all."""
    sink = io.BytesIO()
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive, zipfile.ZipFile(sink, "w") as written:
            names = archive.namelist()
            chosen = rng.choice(
                [
                    *names,
                    *(n for n in names if n.endswith(".pkl")),
                    *(n for n in names if n.endswith(".pkl")),
                ]
            )
            for name in names:
                content = archive.read(name)
                if name == chosen:
                    if rng.random() < 0.1:
                        continue
                    content = mutated_bytes(rng, content, content)
                packed = zipfile.ZIP_DEFLATED if rng.random() < 0.05 else zipfile.ZIP_STORED
                written.writestr(name, content, packed)
                if rng.random() < 0.02:
                    written.writestr(name + rng.choice(("", "/../x", "0")), content)
    except Exception:  # noqa: BLE001  # no archive any more
        return mutated_bytes(rng, data, data)
    return sink.getvalue()
