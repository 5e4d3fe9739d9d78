"""Starts the ranks of a run as processes of their own, as a launcher does, and waits for them."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).parent


class Ranks:
    """Processes under way."""

    def __init__(self, scenarios: str, size: int, directory: Path, *arguments: str) -> None:
        port = _free_port()
        self.processes = [
            subprocess.Popen(
                [sys.executable, str(HERE / scenarios), str(directory), *arguments],
                env={
                    **os.environ,
                    "RANK": str(rank),
                    "LOCAL_RANK": str(rank),
                    "WORLD_SIZE": str(size),
                    "LOCAL_WORLD_SIZE": str(size),
                    "MASTER_ADDR": "127.0.0.1",
                    "MASTER_PORT": str(port),
                    "TORCHELASTIC_RUN_ID": "tests",  # as torchrun tells Lightning who started it
                    "OMP_NUM_THREADS": "1",
                    "PYTHONPATH": os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")]),
                },
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            for rank in range(size)
        ]

    def finish(self, timeout: float = 120.0) -> list[str]:
        """Waits for all ranks and returns what each printed; one that hangs fails."""
        deadline = time.monotonic() + timeout
        try:
            return [
                process.communicate(timeout=max(deadline - time.monotonic(), 0.1))[0]
                for process in self.processes
            ]
        finally:
            for process in self.processes:
                process.kill()
                process.wait()

    @property
    def codes(self) -> list[int]:
        return [process.returncode for process in self.processes]


def run_ranks(
    scenarios: str, size: int, directory: Path, *arguments: str, timeout: float = 120.0
) -> list[str]:
    ranks = Ranks(scenarios, size, directory, *arguments)
    outputs = ranks.finish(timeout)
    assert ranks.codes == [0] * size, "\n".join(outputs)
    return outputs


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
