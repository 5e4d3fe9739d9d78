"""A figure that says how well it is known."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Bounded:
    """An estimate with the exact interval it must lie in.

    Attributes:
        value: The best estimate, within [low, high].
        low: No smaller figure is possible.
        high: No larger figure is possible.

    Raises:
        ValueError: If not low <= value <= high.
    """

    value: float
    low: float
    high: float

    def __post_init__(self) -> None:
        if not self.low <= self.value <= self.high:
            raise ValueError(f"{self.value} is outside [{self.low}, {self.high}]")

    @classmethod
    def exactly(cls, value: float) -> "Bounded":
        """Returns a figure known without doubt."""
        return cls(value, value, value)

    @classmethod
    def within(cls, value: float, low: float, high: float) -> "Bounded":
        """Returns `value` moved into [low, high], so that an estimate can't leave its bounds."""
        return cls(min(max(value, low), high), low, high)

    @property
    def exact(self) -> bool:
        """Whether the figure is known without doubt."""
        return self.low == self.high

    def times(self, factor: float) -> "Bounded":
        """Returns the figure multiplied by a factor >= 0."""
        return Bounded(self.value * factor, self.low * factor, self.high * factor)

    def __float__(self) -> float:
        return self.value
