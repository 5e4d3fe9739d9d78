import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from record_builders import write_steps

from numwatch import open_run


def test_some_columns_and_some_steps_are_read_alone(tmp_path):
    write_steps(tmp_path, range(10), each_its_part=True)
    write_steps(tmp_path, range(10, 20))
    run = open_run(tmp_path)
    wanted = np.array([3, 7, 12, 15, 99])
    for columns in (["amax", "slot"], ["step"], ["binades", "step", "numel"]):
        pieces = list(run.batches("tensors", columns=columns, steps=wanted))
        assert [piece.num_rows for piece in pieces] == [2, 2, 4]  # each part once, others never
        whole = run.tensors().filter(pc.is_in(run.tensors()["step"], pa.array(wanted)))
        assert pa.concat_tables(pieces).equals(whole.select(columns))
    assert not list(run.batches("tensors", columns=["slot"], steps=np.array([], np.int64)))
