"""A run's recorded history under a recipe that it did not use."""

from numwatch.replay.figures import SlotReplay
from numwatch.replay.replay import Replay, replay
from numwatch.replay.sweep import Swept, grid, sweep

__all__ = ["Replay", "SlotReplay", "Swept", "grid", "replay", "sweep"]
