"""Plans: what depends on what, where steps stand, and what differs."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest

from posegen.cluster.connecting import Workers
from posegen.runs.options import Options, plan_for
from posegen.runs.plan import Plan
from posegen.storage.files import write_json
from posegen.training.checkpoints import Interval, StageProgress, snapshot, write_snapshot
from posegen.training.step import build_trainer
from tests.training.test_step import CPU

SMALL = [
    "coarse.width=4",
    "refinement.width=4",
    "refinement.discriminator_width=4",
    "coarse.steps=4",
    "refinement.steps=4",
]


def plan(folder: Path, *given: str, **fields) -> Plan:
    return dataclasses.replace(plan_for(dataclasses.replace(Options(), run=folder, set=[*SMALL, *given])), **fields)


def states(made: Plan) -> dict[str, str]:
    return {step.name: step.state for step in made.steps()}


def finish(made: Plan, *names: str) -> None:
    """Puts on disk what the steps leave when they are done."""
    made.save()
    for index, stage in enumerate(made.system.stages):
        if stage.name in names:
            trainer = build_trainer(stage, made.system.canvas, seed=0, device=CPU)
            write_snapshot(
                made.stages / stage.name,
                snapshot(trainer, StageProgress(stage.training.steps, made.config_hash(index), 0, {}), []),
            )
    if "scores" in names:
        write_json(made.scores / "metrics.json", {"fingerprint": made.scores_fingerprint})
    if "report" in names:
        write_json(made.report / "fingerprint.json", {"fingerprint": made.report_fingerprint})


ALL = ("coarse", "refinement", "scores", "report")


def test_a_fresh_folder_misses_everything(tmp_path: Path):
    assert set(states(plan(tmp_path)).values()) == {"missing"}


def test_what_is_done_is_seen_as_done(tmp_path: Path):
    finish(plan(tmp_path), *ALL)
    assert {name: state for name, state in states(plan(tmp_path)).items() if name != "shards"} == dict.fromkeys(
        ALL, "done"
    )


def test_neither_workers_nor_device_nor_checkpoints_change_a_result(tmp_path: Path):
    finish(plan(tmp_path), *ALL)
    other = plan(tmp_path, workers=Workers(2, 2), device="cpu", checkpoint_every=Interval(1))
    assert all(states(other)[name] == "done" for name in ALL)


@pytest.mark.parametrize(
    ("setting", "redone"),
    [
        ("refinement.alpha=0.25", {"refinement", "scores", "report"}),
        ("coarse.lr=0.5", {"coarse", "refinement", "scores", "report"}),
        ("pose_maps.radius=3", {"coarse", "refinement", "scores", "report"}),
        ("data.seed=3", {"coarse", "refinement", "scores", "report"}),
        ("shards.mask_radius=3", {"coarse", "refinement", "scores", "report"}),
    ],
)
def test_a_setting_changes_what_depends_on_it_and_nothing_else(tmp_path: Path, setting: str, redone: set[str]):
    finish(plan(tmp_path), *ALL)
    changed = plan(tmp_path, setting)
    assert {name for name, state in states(changed).items() if state == "differs"} == redone
    path, _, value = setting.partition("=")
    assert any(line.startswith(f"{path}: ") and value in line for line in changed.differences())


def test_fewer_test_pairs_redo_the_scores_only(tmp_path: Path):
    finish(plan(tmp_path), *ALL)
    fewer = plan(tmp_path, score_pairs=3)
    assert {name for name, state in states(fewer).items() if state == "differs"} == {"scores", "report"}


def test_more_steps_go_on_and_fewer_start_again(tmp_path: Path):
    constant = "coarse.constant_lr_share=1"
    finish(plan(tmp_path, constant), "coarse")
    assert states(plan(tmp_path, constant, "coarse.steps=9"))["coarse"] == "started"
    assert states(plan(tmp_path, constant, "coarse.steps=3"))["coarse"] == "differs"
    decaying = plan(tmp_path, "coarse.constant_lr_share=0.5")
    shutil.rmtree(decaying.stages)
    finish(decaying, "coarse")
    longer = plan(tmp_path, "coarse.constant_lr_share=0.5", "coarse.steps=9")
    assert states(longer)["coarse"] == "differs", "a learning rate that ends with the stage was another one"


def test_half_made_shards_are_started_and_their_differences_say_why(tmp_path: Path):
    made = plan(tmp_path)
    made.shards.mkdir(parents=True)
    assert states(made)["shards"] == "started"


def test_settings_are_json(tmp_path: Path):
    made = plan(tmp_path)
    assert json.loads(json.dumps(made.settings)) == made.settings
    made.save()
    assert made.differences() == []


def test_a_written_file_is_whole_or_the_old_one(tmp_path: Path):
    write_json(tmp_path / "a.json", {"a": 1})
    with pytest.raises(TypeError):
        write_json(tmp_path / "a.json", {(1, 2): 3})  # pyright: ignore
    assert json.loads((tmp_path / "a.json").read_text()) == {"a": 1}
