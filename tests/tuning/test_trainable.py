"""A trial's training, validation by validation, with a launcher in place of Ray Train."""

import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from posegen.cluster.connecting import Workers
from posegen.storage.files import StorageFailed
from posegen.training.launch import Decide, Diverged
from posegen.training.step import build_trainer
from posegen.training.task import Task
from posegen.tuning import trainable
from posegen.tuning.trainable import TrainingThread, TrialTrainable, is_trained
from tests.training.test_checkpoints import save
from tests.training.test_loop import task as loop_task
from tests.training.test_step import CPU
from tests.training.toy import CANVAS
from tests.training.toy import tug as tug_stage

PATIENCE = 20.0  # seconds after which a thread that should have moved fails its test


def tug(steps: int = 8, folder: Path = Path("nowhere")) -> Task:
    return loop_task(Path("nowhere"), folder, steps=steps)


class Validated:
    """A launcher that validates at given steps and keeps the answers."""

    def __init__(self, steps: Sequence[int] = (2, 4, 6, 8), then: Callable[[], None] = lambda: None) -> None:
        self.steps, self.then = steps, then
        self.tasks: list[Task] = []
        self.answers: list[tuple[int, bool]] = []
        self.ended = threading.Event()

    def __call__(self, task: Task, decide: Decide) -> None:
        self.tasks.append(task)
        for step in self.steps:
            answer = decide(step, {"ssim": step / 10})
            self.answers.append((step, answer))
            if not answer:
                break
        self.then()
        self.ended.set()


@pytest.fixture
def begun(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., TrainingThread]]:
    """Begins trainings, and sees to it that none outlives its test."""
    monkeypatch.setattr(trainable, "STOP_TIMEOUT", PATIENCE)
    trainings: list[TrainingThread] = []

    def begin(launch: Callable[[Task, Decide], None], tasks: Sequence[Task] = (tug(),)) -> TrainingThread:
        trainings.append(TrainingThread(tasks, launch))
        return trainings[-1]

    yield begin
    for training in trainings:
        training.stop()
        assert not training._thread.is_alive()


def test_results_come_one_by_one_and_the_last_is_done(begun):
    launch = Validated()
    training = begun(launch)
    results = [training.next_result() for _ in range(4)]
    assert [(r["step"], r["scores"], r["done"]) for r in results] == [
        (2, {"ssim": 0.2}, False),
        (4, {"ssim": 0.4}, False),
        (6, {"ssim": 0.6}, False),
        (8, {"ssim": 0.8}, True),
    ]


def test_training_blocks_at_each_validation_until_it_may_continue(begun):
    launch = Validated()
    training = begun(launch)
    for count in range(4):
        training.next_result()
        assert launch.answers == [(step, True) for step in launch.steps[:count]]
        assert not launch.ended.is_set()


def test_a_stopped_training_ends_at_its_last_validation(begun):
    launch = Validated()
    training = begun(launch)
    training.next_result()
    training.next_result()
    training.stop()
    assert not training._thread.is_alive()
    assert launch.answers == [(2, True), (4, False)]


def test_a_training_stopped_before_its_first_validation_ends_there(begun):
    """The launch gets to its validation only when the stopping thread has begun to wait for it."""
    released, launch = threading.Event(), Validated()

    def held(task: Task, decide: Decide) -> None:
        assert released.wait(PATIENCE)
        launch(task, decide)

    training = begun(held)
    thread = training._thread
    wait = thread.join
    thread.join = lambda timeout=None: (released.set(), wait(timeout))[1]
    training.stop()
    assert not thread.is_alive()
    assert launch.answers == [(2, False)]


def test_a_training_that_was_validated_but_never_asked_for_its_result_is_stopped_too(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(trainable, "STOP_TIMEOUT", 0.5)
    launch = Validated()
    training = TrainingThread([tug()], launch)
    training._outcomes.put(training._outcomes.get(timeout=PATIENCE))  # it has been validated, and waits
    training.stop()
    alive = training._thread.is_alive()
    training._answers.put(False)  # whatever was found, no thread outlives the test
    assert not alive


def test_a_divergence_is_a_result(begun):
    def diverge() -> None:
        raise Diverged("stage 'tug' stopped at step 5: generator/l1 is nan")

    training = begun(Validated(steps=(2,), then=diverge))
    assert training.next_result()["step"] == 2
    assert training.next_result() == {"done": True, "diverged": "stage 'tug' stopped at step 5: generator/l1 is nan"}


def test_a_failure_is_raised_where_the_next_result_is_asked_for(begun):
    def fail() -> None:
        raise ValueError("stage 'tug' failed more than 3 times")

    training = begun(Validated(steps=(2,), then=fail))
    training.next_result()
    with pytest.raises(ValueError, match="more than 3 times"):
        training.next_result()


def test_stages_are_trained_in_order_and_only_the_last_is_validated(begun):
    launch = Validated()
    first, last = tug(steps=3), tug(steps=8)

    def launched(task: Task, decide: Decide) -> None:
        if task is last:
            launch(task, decide)
        else:
            launch.tasks.append(task)

    training = begun(launched, [first, last])
    results = [training.next_result() for _ in range(4)]
    assert [r["done"] for r in results] == [False, False, False, True]
    assert [id(task) for task in launch.tasks] == [id(first), id(last)]


def test_a_failing_stage_keeps_the_next_one_from_being_trained(begun):
    seen = []

    def fail(task: Task, decide: Decide) -> None:
        seen.append(task.stage.training.steps)
        raise Diverged("nan")

    training = begun(fail, [tug(steps=3), tug(steps=8)])
    assert training.next_result() == {"done": True, "diverged": "nan"}
    assert seen == [3]


def test_a_training_that_ends_without_a_validation_is_done(begun):
    training = begun(Validated(steps=()))
    assert training.next_result() == {"done": True}
    training.stop()
    training.stop()  # Tune may clean up twice


def test_a_stage_is_trained_at_its_last_step(tmp_path: Path):
    stage = tug(steps=3, folder=tmp_path / "stage")
    assert not is_trained(stage)
    for step in (2, 3):
        save(stage.folder, build_trainer(tug_stage(), CANVAS, seed=0, device=CPU), step)
        assert is_trained(stage) == (step == 3)


def test_trained_stages_are_skipped_but_never_the_last(begun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    stages = [tug(steps=3, folder=tmp_path / name) for name in ("first", "second", "last")]
    for stage in (stages[0], stages[2]):
        save(stage.folder, build_trainer(tug_stage(), CANVAS, seed=0, device=CPU), 3)
    given: list[list[Task]] = []

    class Given(TrainingThread):
        def __init__(self, tasks: Sequence[Task], launch: Callable[[Task, Decide], None]):
            given.append(list(tasks))

    monkeypatch.setattr(trainable, "TrainingThread", Given)
    monkeypatch.setattr(trainable, "remove_other", lambda *_: None)
    run = TrialTrainable.__new__(TrialTrainable)
    run.config = {"number": 4, "seed": 0, "settings": {}}
    run._setup = trainable.TrialSetup(lambda trial: stages, Workers(1, 1), False, 1)
    run._begin()
    assert given == [stages[1:]], "the last one is asked for its scores again"


def test_storage_that_fails_is_a_result_and_other_failures_are_raised(begun):
    def fail(error: ValueError) -> TrialTrainable:
        run = TrialTrainable.__new__(TrialTrainable)
        run._training = begun(Validated(steps=(2,), then=lambda: (_ for _ in ()).throw(error)))
        assert run.step()["scores"] == {"ssim": 0.2}
        return run

    assert fail(StorageFailed("the disk is full")).step() == {"done": True, "storage_failed": "the disk is full"}
    with pytest.raises(ValueError, match="a batch is broken"):
        fail(ValueError("a batch is broken")).step()
