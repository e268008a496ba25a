"""Where a stage's workers and controller leave messages, and the driver takes them. Imports little: it is a process."""

from posegen.train.failures import Attempts, verdict


class Board:
    """Where workers and controller leave messages and the driver takes them: an actor without a CPU of its own."""

    def __init__(self) -> None:
        self._messages: list[tuple[str, object]] = []
        self._answers: dict[int, bool] = {}
        self._attempts = Attempts()
        self._given_up = ""

    def post(self, kind: str, content: object) -> None:
        self._messages.append((kind, content))

    def take(self) -> list[tuple[str, object]]:
        messages, self._messages = self._messages, []
        return messages

    def answer(self, step: int, goes_on: bool) -> None:
        self._answers[step] = goes_on

    def answered(self, step: int) -> bool | None:
        """The answer to the judgement of a step, given once; None while there is none."""
        return self._answers.pop(step, None)

    def begins(self, step: int, workers: int) -> int:
        """As `Attempts.begins`; the driver is told."""
        careful_until = self._attempts.begins(step, workers)
        self.post("begins", (step, workers, self._attempts.record()))
        return careful_until

    def at(self, step: int) -> None:
        self._attempts.at(step)

    def raised(self, step: int, what: str) -> None:
        self._attempts.raised(step, what)

    def failed(self, what: str, preempted: bool, died: bool) -> None:
        failure = self._attempts.failed(what, preempted=preempted, died=died)
        self.post("failed", (failure, self._attempts.record()))

    def give_up(self, why: str) -> None:
        """The storage takes nothing: no further attempt is made. The driver is told."""
        self._given_up = why
        self.post("storage_failed", why)

    def verdict(self) -> str:
        """Why it is no use to try again; "" where it is."""
        return self._given_up or verdict(self._attempts.failures)
