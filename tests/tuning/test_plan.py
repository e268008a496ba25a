"""Sweeps as plans: what is shared, what each trial trains, what waits, and every mistake before anything starts."""

import dataclasses
import shutil
from pathlib import Path

import pytest

from posegen.runs.options import Options
from posegen.storage.files import write_json
from posegen.tuning.options import SweepOptions, sweep_for
from posegen.tuning.plan import SweepPlan
from posegen.tuning.results import Trial
from posegen.tuning.space import TPE, FixedList
from posegen.tuning.sweep import describe_sweep, run_sweep, trials_at_once
from tests.conftest import Blocks, shards_of

SMALL = [
    "data.train_people=10", "data.test_people=2", "coarse.steps=30", "coarse.width=4", "refinement.width=4",
    "refinement.discriminator_width=4",
]  # fmt: skip


def sweep(folder: Path, *given: str, options: dict | None = None, **how) -> SweepPlan:
    described = dataclasses.replace(Options(run=folder, set=[*SMALL, *given]), **(options or {}))
    return sweep_for(described, dataclasses.replace(SweepOptions(), **how))


def test_the_default_searches_vdgs_weights_with_tpe_and_asha():
    plan = sweep_for(Options(), SweepOptions())
    assert (plan.base.system.name, plan.search, plan.scheduler, plan.metrics) == (
        "vdg",
        "optuna",
        "asha",
        ("mask_ssim",),
    )
    assert list(plan.paper) == ["refinement.alpha", "refinement.image_weight", "refinement.mask_weight"]
    assert plan.run == Path("runs/vdg-full-synthetic-tune").absolute()
    assert plan.trials >= 8
    assert isinstance(plan.algorithm(), TPE)


def test_the_stages_before_the_space_are_shared_and_saved(tmp_path: Path):
    plan = sweep(tmp_path, trials=9, budget=40, seeds=3)
    assert plan.first == 1
    assert (plan.steps_shared, plan.steps_per_trial, plan.budget) == (30, 40, 40)
    assert plan.steps_saved == 30 * (9 + 6 - 1)  # 9 trials and 6 of the comparison, all but one of them without it
    assert [step.name for step in plan.shared_steps()] == ["shards", "coarse"]
    assert any("420 steps" in line for line in describe_sweep(plan))


def test_a_space_that_touches_the_first_stage_shares_the_shards_alone(tmp_path: Path):
    space = tmp_path / "space.py"
    space.write_text('from ray import tune\nSPACE = {"coarse.lr": tune.loguniform(1e-4, 1e-2)}\n')
    plan = sweep(tmp_path, budget=8, space=str(space))
    assert plan.first == 0
    assert plan.steps_saved == 0
    assert plan.steps_per_trial == 16  # both stages
    assert [step.name for step in plan.shared_steps()] == ["shards"]


def test_validation_people_are_neither_trained_on_nor_tested_on(tmp_path: Path):
    people = {split: set() for split in ("train", "validation", "test")}
    for entry in sweep(tmp_path, validation_share=0.3).base.listing.entries:
        people[entry.split].add(entry.identity)
    assert {split: len(who) for split, who in people.items()} == {"train": 7, "validation": 3, "test": 2}
    assert len(set().union(*people.values())) == 12


def test_a_trials_tasks_train_what_the_space_touches_on_the_shared_stages(tmp_path: Path):
    plan = sweep(tmp_path, budget=40)
    make = plan.task_maker("validation", range(5))
    (task,) = make(Trial(number=3, settings={"refinement.alpha": 0.25}))
    assert task.stage.name == "refinement"
    assert task.stage.alpha == 0.25  # pyright: ignore
    assert task.stage.training.steps == 40
    assert task.store == plan.base.store
    assert task.folders == {"coarse": Path("stages/coarse"), "refinement": Path("trials/0003/stages/refinement")}
    assert task.folder == tmp_path / "trials" / "0003" / "stages" / "refinement"
    assert task.validator is not None
    assert list(task.validator.at) == [10, 20, 30, 40]
    (final,) = plan.task_maker("test", range(5))(Trial(number=3, settings={"refinement.alpha": 0.25}))
    assert final.validator is not None
    assert list(final.validator.at) == [40]


def test_settings_and_seeds_have_config_hashes_of_their_own(tmp_path: Path):
    plan = sweep(tmp_path)
    make = plan.task_maker("validation", range(5))
    made = [
        make(Trial(number=0, settings={"refinement.alpha": alpha}, seed=seed))[0].config_hash
        for seed, alpha in ((0, 0.25), (0, 0.5), (1, 0.25), (0, 0.25))
    ]
    assert len(set(made)) == 3
    assert made[0] == made[3]


def test_the_first_trial_has_the_papers_weights_and_the_others_wait_for_theirs(tmp_path: Path):
    ended, waiting = sweep(tmp_path, trials=4).search_trials()
    assert ended == []
    assert [trial.number for trial in waiting] == [0, 1, 2, 3]
    assert waiting[0].settings == {
        "refinement.alpha": 0.5, "refinement.image_weight": 200.0, "refinement.mask_weight": 1.0
    }  # fmt: skip
    assert all(not trial.settings for trial in waiting[1:])


def test_what_has_ended_does_not_wait_again_and_more_trials_go_on(tmp_path: Path):
    plan = sweep(tmp_path, trials=4)
    for number, state in enumerate(("finished", "running", "diverged")):
        plan.folder.write(Trial(number=number, settings={"refinement.alpha": 0.1}, state=state))
    ended, waiting = plan.search_trials()
    assert [trial.number for trial in ended] == [0, 2]
    assert [(trial.number, bool(trial.settings)) for trial in waiting] == [(1, True), (3, False)]
    assert [trial.number for trial in sweep(tmp_path, trials=6).search_trials()[1]] == [1, 3, 4, 5]


def test_a_comparison_has_each_seed_on_both_sides_and_another_best_is_compared_anew(tmp_path: Path):
    plan = sweep(tmp_path, options={"seed": 10})
    best = Trial(number=5, settings={**plan.paper, "refinement.alpha": 0.75}, state="finished")
    waiting = plan.final_trials(best)[1]
    assert [(t.name, t.seed) for t in waiting] == [(n, s) for s in (11, 12, 13) for n in ("paper", "best")]
    for trial in waiting:
        plan.finals.write(dataclasses.replace(trial, state="finished"))
    assert plan.final_trials(best)[1] == []
    other = dataclasses.replace(best, settings={**plan.paper, "refinement.alpha": 0.125})
    assert [(t.name, t.seed) for t in plan.final_trials(other)[1]] == [("best", seed) for seed in (11, 12, 13)]


def test_a_grid_has_the_papers_weights_and_its_points(tmp_path: Path):
    plan = sweep(tmp_path, search="grid", trials=12)
    assert plan.trials == 9  # 2 x 2 x 2, three of each would be 27
    assert isinstance(plan.algorithm(), FixedList)
    assert plan.algorithm().suggest(0) == plan.paper


def test_a_random_search_is_the_same_again(tmp_path: Path):
    first, again = (sweep(tmp_path, search="random").algorithm() for _ in range(2))
    assert [first.suggest(n) for n in range(8)] == [again.suggest(n) for n in range(8)]


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"metric": ["masked_ssim"]}, "mask_ssim"),
        ({"metric": ["mask_ssim", "psnr"], "scheduler": "asha"}, "--scheduler none"),
        ({"space": "nowhere.py"}, "no such file"),
        ({"space": "vgd"}, "pg2, .*vdg"),
        ({"trials": 1}, "at least 2"),
        ({"budget": 3}, "at least 4"),
        ({"concurrent": 0}, "at least 1"),
        ({"seeds": 2}, "at least 3"),
        ({"search": "grid", "trials": 8}, "--trials 9 or more"),
        ({"validation_share": 1.5}, "share"),
        ({"validation_pairs": 0}, "at least 1"),
    ],
)
def test_mistakes_are_told_with_what_is_valid(tmp_path: Path, how: dict, message: str):
    with pytest.raises(ValueError, match=message):
        sweep(tmp_path / "run", **how)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ('{"refinement.alhpa": tune.uniform(0, 1)}', "refinement.alpha"),
        ('{"refinement.alpha": tune.uniform(0, 1.5)}', "at least 0 and at most 1"),
        ('{"refinement.alpha": tune.uniform(-0.5, 1)}', "at least 0 and at most 1"),
        ('{"refinement.alpha": 0.5}', "tune.uniform"),
        ('{"refinement.discriminator": tune.choice(["stack", "stck"])}', "stack"),
        ('{"refinement.steps": tune.randint(10, 20)}', "--budget"),
        ('{"data.seed": tune.randint(0, 9)}', "refinement.alpha"),
        ("{}", "SPACE"),
    ],
)
def test_a_space_that_does_not_fit_is_told(tmp_path: Path, space: str, message: str):
    (tmp_path / "space.py").write_text(f"from ray import tune\nSPACE = {space}\n")
    with pytest.raises(ValueError, match=message):
        sweep(tmp_path / "run", space=str(tmp_path / "space.py"))


def test_no_more_trials_at_once_than_there_is_room_for(tmp_path: Path):
    assert trials_at_once(sweep(tmp_path, trials=12), slots=2) == 2
    assert trials_at_once(sweep(tmp_path, trials=12), slots=64) == 4  # a third: later ones learn from earlier ones
    assert trials_at_once(sweep(tmp_path, trials=12, concurrent=8), slots=8) == 8
    assert trials_at_once(sweep(tmp_path, trials=12, options={"workers": 2}), slots=4) == 2
    assert trials_at_once(sweep(tmp_path, trials=12, options={"workers": "1:2"}), slots=4) == 2
    assert trials_at_once(sweep(tmp_path, trials=12, options={"workers": "1:4"}), slots=3) == 1
    with pytest.raises(ValueError, match=r"--concurrent 3 .* room for 2 .* --concurrent 2 or less"):
        trials_at_once(sweep(tmp_path, concurrent=3), slots=2)
    with pytest.raises(ValueError, match="fewer --workers"):
        trials_at_once(sweep(tmp_path, options={"workers": "3:4"}), slots=2)


def test_other_settings_are_refused_with_what_differs_before_ray_starts(tmp_path: Path):
    sweep(tmp_path).save()
    with pytest.raises(ValueError, match=r"refinement.steps: 120 there, 40 now(.|\n)*--update"):
        run_sweep(sweep(tmp_path, budget=40))
    with pytest.raises(ValueError, match=r"metrics: .'mask_ssim'. there, .'psnr'. now"):
        run_sweep(sweep(tmp_path, metric=["psnr"]))
    assert sweep(tmp_path, trials=30, concurrent=1, seeds=5).differences() == []


def test_best_settings_are_taken_by_other_commands(tmp_path: Path):
    from posegen.runs.options import plan_for
    from posegen.tuning.sweep import write_best

    plan = sweep(tmp_path, "coarse.width=8", options={"system": "vdg", "variant": "w"})
    best = Trial(number=2, settings={"refinement.alpha": 0.125, "refinement.image_weight": 33.5}, state="finished")
    path = write_best(plan, best)
    made = plan_for(Options(settings=path))
    assert (made.system.name, made.system.variant) == ("vdg", "w")
    assert made.settings["refinement.alpha"] == 0.125
    assert made.settings["refinement.image_weight"] == 33.5
    assert made.settings["refinement.mask_weight"] == 2.0  # the variant's own
    assert made.settings["coarse.width"] == 8
    assert made.settings["refinement.steps"] == 240  # not the budget's
    assert plan_for(Options(settings=path, set=["refinement.alpha=1"])).settings["refinement.alpha"] == 1.0
    with pytest.raises(ValueError, match="for system vdg"):
        plan_for(Options(settings=path, system="pg2"))


@pytest.mark.parametrize("content", [None, "[]", '{"alpha": 1}', "not json"])
def test_a_settings_file_that_is_none_is_told(tmp_path: Path, content: str | None):
    from posegen.runs.options import plan_for

    path = tmp_path / "best.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ValueError, match="expected a JSON file"):
        plan_for(Options(settings=path))


def test_a_settings_file_is_kept_with_the_run(tmp_path: Path):
    from posegen.runs.options import from_run, kept_options, plan_for

    path = tmp_path / "best.json"
    write_json(path, {"system": "pg2", "settings": {"refinement.l1_weight": 7.5}})
    options = Options(settings=path, run=tmp_path / "run")
    write_json(tmp_path / "run" / "options.json", kept_options(options))
    assert plan_for(from_run(Options(run=tmp_path / "run"))).settings["refinement.l1_weight"] == 7.5


def test_a_trials_tasks_are_the_same_on_every_node(s3_server, two_nodes, tmp_path: Path):
    """Where shards are read in windows, their manifest is part of a config hash: a node that lacks it fetches it."""
    plan = sweep(Path("unused"), options={"run": "s3://runs/planned", "cache_gb": 5e-6})
    shards = shards_of(Blocks(people=12), tmp_path / "shards", images_per_shard=4)
    made = []
    for node in ("first", "second"):
        two_nodes(node)
        if node == "first":
            (plan.run / "shards").mkdir(parents=True)
            shutil.copyfile(shards / "manifest.json", plan.run / "shards" / "manifest.json")
            plan.store.publish("shards")
        trial = Trial(number=3, settings={"refinement.alpha": 0.25})
        made.append(plan.task_maker("validation", range(5))(trial)[0])
    assert made[0].window
    assert (made[0].config_hash, made[0].window) == (made[1].config_hash, made[1].window)
    assert made[1].folder == plan.folder.path(3) / "stages" / "refinement"
    assert made[1].prefix == "trials/0003/stages/refinement"
