"""The recent values of one metric."""

from array import array
from bisect import bisect_left


class MetricSeries:
    """
    The last `capacity` finite values of a metric with their rows and steps, and some before them.

    Arrays of the standard library: a number is added for every metric of every record, and windows are read only now and
    then, most of them for a median.

    Args:
        capacity (`int`): Values that are kept.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.rows, self.steps, self.values = array("d"), array("d"), array("d")

    @property
    def start(self) -> int:
        """Where the last `capacity` values begin."""
        return max(0, len(self.rows) - self.capacity)

    def since(self, row: int) -> int:
        """Where the values from `row` on begin."""
        return bisect_left(self.rows, row, self.start)

    def trim(self) -> None:
        """Forgets what is before the last `capacity` values."""
        start = self.start
        del self.rows[:start], self.steps[:start], self.values[:start]

    def drop_from(self, step: int) -> None:
        """Forgets what was logged from `step` on."""
        self.trim()
        end = bisect_left(self.steps, step)
        del self.rows[end:], self.steps[end:], self.values[end:]
