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
def quiet(*, notices: bool = True) -> Iterator[None]:
    """Within it, just these warnings, log lines and loggers are silent.

    Args:
        notices: Leave Lightning its other notices; of many runs in a row they are none.
    """
    lightning = rank_zero_module.log
    level = lightning.level
    if not notices:
        lightning.setLevel(logging.WARNING)
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
        lightning.setLevel(level)
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


def _worth_saying(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith(_NOTICES)
