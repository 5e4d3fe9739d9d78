"""A run's recorded history under a recipe that it did not use."""

from numwatch.replay.figures import Reach, SlotReplay
from numwatch.replay.loss import LossCourse
from numwatch.replay.replay import Replay, Replayer, replay
from numwatch.replay.sweep import Swept, grid, sweep

__all__ = [
    "LossCourse",
    "Reach",
    "Replay",
    "Replayer",
    "SlotReplay",
    "Swept",
    "grid",
    "replay",
    "sweep",
]
