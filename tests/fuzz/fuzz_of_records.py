"""Manifests, events and Parquet parts."""

import io
import json
import math
import random

import pyarrow as pa
import pyarrow.parquet as pq
from fuzz_base import OfRecord, mutated_json
from fuzz_mutation import NUMBERS, TEXTS, mutated_bytes, mutated_text
from fuzz_records import choice_of

from numwatch.record.schema import TABLES


class ManifestTarget(OfRecord):
    """`manifest.json`."""

    name = "manifest"

    def seeds(self) -> list[bytes]:
        manifest = json.loads((self.record / "manifest.json").read_bytes())
        few = {**manifest, "slots": manifest["slots"][:4]}
        return [json.dumps(one).encode() for one in (few, {"schema": 1}, manifest)]

    mutate = staticmethod(mutated_json)  # type: ignore[assignment]

    def run(self, data: bytes) -> str:
        return self.read_with(self.record / "manifest.json", data, choice_of(data))


class EventsTarget(OfRecord):
    """`events.jsonl`."""

    name = "events"

    def seeds(self) -> list[bytes]:
        lines = (self.record / "events.jsonl").read_bytes().splitlines(keepends=True)
        return [b"".join(lines), *{json.loads(line)["kind"]: line for line in lines}.values()]

    def mutate(self, rng: random.Random, data: bytes, other: bytes) -> bytes:
        if rng.random() < 0.3:
            text = mutated_text(rng, data.decode("latin-1"), other.decode("latin-1"))
            return text.encode("utf-8", "surrogatepass")
        lines = data.splitlines() or [b"{}"]
        at = rng.randrange(len(lines))
        others = other.splitlines() or [b"{}"]
        lines[at] = mutated_json(rng, lines[at], rng.choice(others))
        return b"\n".join(lines) + b"\n"

    def run(self, data: bytes) -> str:
        return self.read_with(self.record / "events.jsonl", data, choice_of(data))


class PartsTarget(OfRecord):
    """Parquet parts: a line with the table's name, then the file."""

    name = "parts"

    def seeds(self) -> list[bytes]:
        return [
            name.encode() + b"\n" + path.read_bytes()
            for name in TABLES
            for path in sorted((self.record / name).glob("*.parquet"))[:1]
        ]

    def mutate(self, rng: random.Random, data: bytes, other: bytes) -> bytes:
        name, _, content = data.partition(b"\n")
        if rng.random() < 0.25:
            return name + b"\n" + mutated_bytes(rng, content, other.partition(b"\n")[2])
        try:
            table = pq.read_table(io.BytesIO(content))
            for _ in range(rng.choice((1, 1, 2, 3))):
                table = _mutated_table(rng, table)
            sink = io.BytesIO()
            pq.write_table(
                table.slice(0, 5000),
                sink,
                compression=rng.choice(("zstd", "none", "snappy", "gzip")),
                use_dictionary=rng.random() < 0.5,
                row_group_size=rng.choice((1, 7, 10_000)),
                write_statistics=rng.random() < 0.9,
            )
        except (pa.ArrowException, OSError, ValueError, TypeError, OverflowError, KeyError):
            return name + b"\n" + mutated_bytes(rng, content, b"")
        if rng.random() < 0.02:
            name = rng.choice(list(TABLES)).encode()
        return name + b"\n" + sink.getvalue()

    def run(self, data: bytes) -> str:
        name, _, content = data.partition(b"\n")
        table = name.decode("latin-1")
        if table not in TABLES:
            table = "tensors"
        path = self.record / table / "attempt-000-part-00000.parquet"
        return f"{table}: " + self.read_with(path, content, choice_of(data))


def _mutated_table(rng: random.Random, table: pa.Table) -> pa.Table:
    kind = rng.randrange(10)
    if kind == 0 and table.num_columns > 1:
        return table.drop_columns([rng.choice(table.column_names)])
    if kind == 1 and table.num_rows:
        rows = [rng.randrange(table.num_rows) for _ in range(rng.choice((1, 3, 40, 3000)))]
        return table.take(rows)
    if kind == 2:
        return table.slice(rng.randrange(table.num_rows + 1))
    at = rng.randrange(table.num_columns)
    field = table.schema.field(at)
    loose = pa.field(field.name, field.type)
    values = table.column(at).to_pylist()
    if kind == 3:
        return table.set_column(at, loose, pa.nulls(table.num_rows, field.type))
    if kind == 4:
        values = [_odd_of(rng, field.type)] * len(values)
    elif kind == 5:
        values = values[::-1]
    else:
        values = [_odd_of(rng, field.type) if rng.random() < 0.2 else one for one in values]
    return table.set_column(at, loose, pa.array(values, field.type))


def _odd_of(rng: random.Random, kind: pa.DataType):
    if rng.random() < 0.1:
        return None
    if pa.types.is_list(kind):
        length = rng.choice((0, 1, 2, 21, 255, 256, 300))
        return (
            [_odd_of(rng, kind.value_type) if rng.random() < 0.3 else 1 for _ in range(length)]
            if not pa.types.is_string(kind.value_type) and not pa.types.is_list(kind.value_type)
            else [_odd_of(rng, kind.value_type) for _ in range(min(length, 6))]
        )
    if pa.types.is_integer(kind):
        top = 2 ** (kind.bit_width - 1)
        choices = [n for n in NUMBERS if isinstance(n, int) and -top <= n < top]
        return rng.choice((*choices, rng.randrange(100)))
    if pa.types.is_floating(kind):
        return rng.choice([float(n) for n in NUMBERS if abs(n) < 2**1000 or math.isnan(n)])
    if pa.types.is_boolean(kind):
        return rng.random() < 0.5
    names = ("0:input", "0:weight", "2:grad_output", "0.bias:update", "fp16", "e4m3", "bf16")
    return rng.choice((*(text for text in TEXTS if text.isprintable()), *names))
