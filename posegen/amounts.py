"""Amounts as users give them: how many workers, how often a checkpoint."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Workers:
    """How many training workers: one number, or as many as there is room for between two."""

    fewest: int = 1
    most: int = 1

    @staticmethod
    def parse(text: str) -> "Workers":
        """'4' or '2:8'. Raises ValueError for anything else."""
        fewest, colon, most = text.partition(":")
        numbers = [fewest, most if colon else fewest]
        if not all(number.isdecimal() and int(number) > 0 for number in numbers) or int(numbers[0]) > int(numbers[1]):
            raise ValueError(
                f"--workers {text} was given; expected a number of at least 1, such as 4, or the fewest and the most, "
                "such as 2:8."
            )
        return Workers(*map(int, numbers))

    @property
    def elastic(self) -> bool:
        """Whether their number follows the room that there is."""
        return self.fewest < self.most

    def __str__(self) -> str:
        return f"{self.fewest}:{self.most}" if self.elastic else str(self.most)


@dataclass(frozen=True)
class Interval:
    """How often something is done: every so many steps, or minutes; one of the two is 0."""

    steps: int = 0
    minutes: float = 0.0

    def __str__(self) -> str:
        return f"{self.steps:,} steps" if self.steps else f"{self.minutes:g} minutes"

    @staticmethod
    def parse(text: str) -> "Interval":
        """'500' or '10m'. Raises ValueError for anything else."""
        try:
            given = Interval(minutes=float(text[:-1])) if text.endswith("m") else Interval(steps=int(text))
        except ValueError:
            given = Interval()
        if not (given.steps > 0 or 0 < given.minutes < float("inf")):
            raise ValueError(
                f"--checkpoint-every {text} was given; expected steps, such as 500, or minutes, such as 10m."
            )
        return given
