"""Leaves out what Lightning and torchao would say about a demo."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from pytorch_lightning.utilities.rank_zero import rank_zero_module  # type: ignore[attr-defined]

_ADVICE = (
    r"`isinstance\(treespec, LeafSpec\)` is deprecated",  # Lightning's own, under newer torch
    r".*does not have many workers",
    r".*smaller than the logging interval",
)
_NOTICES = (
    "GPU available",
    "TPU available",
    "HPU available",
    "\N{ELECTRIC LIGHT BULB} Tip",
    "Using ",
)
_LOGGERS = ("torchao", "torch.utils._pytree")  # said of torchao's import: extensions not needed


@contextmanager
def quiet() -> Iterator[None]:
    """Within it, just these warnings, log lines and loggers are silent."""
    lightning = rank_zero_module.log
    levels = {name: logging.getLogger(name).level for name in _LOGGERS}
    lightning.addFilter(_worth_saying)
    for name in _LOGGERS:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            for message in _ADVICE:
                warnings.filterwarnings("ignore", message)
            yield
    finally:
        lightning.removeFilter(_worth_saying)
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


def _worth_saying(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith(_NOTICES)
