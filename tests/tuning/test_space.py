"""Searched settings: what a space may hold, and what is computed with it: grids, random points, nearest values."""

import ast
import dataclasses
from pathlib import Path
from pkgutil import iter_modules
from statistics import median

import pytest
from ray import tune

import tune_spaces
from posegen.catalog import SYSTEMS, system
from posegen.tuning.space import Space, check_space, current_values, first_searched_stage, load_space

MODULES = sorted(module.name for module in iter_modules(tune_spaces.__path__))
DATASETS = ("market1501", "deepfashion", "synthetic")
MIXED = {
    "refinement.alpha": tune.uniform(0, 1),
    "refinement.image_weight": tune.loguniform(1, 10_000),
    "refinement.batch_size": tune.randint(2, 9),  # its upper end is left out, as everywhere in Ray Tune
    "refinement.width": tune.qrandint(16, 64, 16),
    "coarse.width": tune.lograndint(1, 1025),
    "refinement.mask_weight": tune.quniform(0, 4, 0.5),
    "refinement.discriminator": tune.choice(["stack", "image", "pair"]),
}


def space(**domains) -> Space:
    """A space over stage II of VDG."""
    return Space("here", {f"refinement.{name}": domain for name, domain in domains.items()})


def vdg():
    return system("vdg", "synthetic")


@pytest.mark.parametrize("name", MODULES)
def test_a_module_of_spaces_holds_a_space_and_no_more(name: str):
    tree = ast.parse((Path(tune_spaces.__path__[0]) / f"{name}.py").read_text())
    docstring, *statements = tree.body
    assert isinstance(docstring, ast.Expr)
    assert ast.get_docstring(tree)
    rest = [each for each in statements if not isinstance(each, ast.Import | ast.ImportFrom)]
    assert [ast.unparse(each).partition(" = ")[0] for each in rest] == ["SPACE"]


@pytest.mark.parametrize("dataset", DATASETS)
@pytest.mark.parametrize("name", MODULES)
def test_every_space_fits_the_system_of_its_name(name: str, dataset: str):
    assert name in SYSTEMS, f"tune_spaces/{name}.py is named after no system"
    check_space(load_space(None, name), system(name, dataset))


def test_a_space_of_no_such_name_is_refused_with_those_that_there_are():
    known = ", ".join(MODULES)
    with pytest.raises(ValueError, match=rf"no search space 'nope'.*There are: {known}\..*--space.*SPACE = \{{"):
        load_space("nope", "vdg")


def test_a_path_that_the_system_does_not_have_is_refused_with_those_that_it_has():
    with pytest.raises(ValueError, match=r"here: 'refinement\.alhpa'.*Did you mean 'refinement\.alpha'.*mask_weight"):
        check_space(space(alhpa=tune.uniform(0, 1)), vdg())
    with pytest.raises(ValueError, match=r"'refinment\.alpha'.*There are: .*refinement\.alpha"):
        check_space(Space("here", {"refinment.alpha": tune.uniform(0, 1)}), vdg())


def test_an_end_outside_the_fields_range_is_refused_with_the_range():
    with pytest.raises(
        ValueError, match=r"'refinement\.alpha' is uniform from 0 to 1\.5, but .* at least 0 and at most 1"
    ):
        check_space(space(alpha=tune.uniform(0, 1.5)), vdg())
    with pytest.raises(ValueError, match=r"'refinement\.discriminator' is one of stack, halves, but .*'halves'"):
        check_space(space(discriminator=tune.choice(["stack", "halves"])), vdg())


@pytest.mark.parametrize("path", ["refinement.steps", "coarse.steps"])
def test_steps_are_not_searched(path: str):
    with pytest.raises(ValueError, match=rf"'{path}' cannot be searched: --budget"):
        check_space(Space("here", {path: tune.randint(10, 20)}), vdg())


def test_a_file_that_is_not_there_is_named():
    with pytest.raises(ValueError, match=r"--space /nowhere/mine\.py was given, but there is no such file"):
        load_space("/nowhere/mine.py", "vdg")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("SPAC = {}", "has no SPACE"),
        ("SPACE = {}", "has no SPACE"),
        ("SPACE = 3", "has no SPACE"),
        ('SPACE = {"refinement.alpha": 0.5}', r"'refinement\.alpha' is 0\.5"),
        ('SPACE = {"refinement.alpha": tune.sample_from(lambda spec: 0.5)}', "cannot be searched.*Function"),
        ('SPACE = {"refinement.alpha": tune.randn(0, 1)}', "cannot be searched.*Float.*Normal"),
    ],
)
def test_a_file_without_a_usable_space_is_refused_with_what_is_expected(tmp_path: Path, content: str, message: str):
    file = tmp_path / "mine.py"
    file.write_text(f"from ray import tune\n{content}\n")
    with pytest.raises(ValueError, match=rf"{file}.*{message}.*Expected SPACE = .*\buniform\b.*loguniform.*choice"):
        load_space(str(file), "vdg")


def test_steps_on_a_logarithmic_scale_are_not_dropped_silently(tmp_path: Path):
    file = tmp_path / "mine.py"
    file.write_text('from ray import tune\nSPACE = {"refinement.image_weight": tune.qloguniform(5, 1000, 5)}\n')
    with pytest.raises(ValueError, match=r"Expected SPACE"):
        load_space(str(file), "vdg")


def test_a_file_of_ones_own_is_read(tmp_path: Path):
    file = tmp_path / "mine.py"
    file.write_text('from ray import tune\nSPACE = {"refinement.alpha": tune.uniform(0.25, 0.75)}\n')
    mine = load_space(str(file), "vdg")
    assert (mine.origin, mine.descriptions()) == (str(file), {"refinement.alpha": "uniform from 0.25 to 0.75"})
    assert load_space("pg2", "vdg").descriptions() == {"refinement.l1_weight": "log-uniform from 1 to 1,000"}


def test_distributions_in_words():
    assert Space("here", MIXED).descriptions() == {
        "refinement.alpha": "uniform from 0 to 1",
        "refinement.image_weight": "log-uniform from 1 to 10,000",
        "refinement.batch_size": "whole numbers, uniform from 2 to 8",
        "refinement.width": "whole numbers, uniform from 16 to 64 in steps of 16",
        "coarse.width": "whole numbers, log-uniform from 1 to 1,024",
        "refinement.mask_weight": "uniform from 0 to 4 in steps of 0.5",
        "refinement.discriminator": "one of stack, image, pair",
    }
    assert Space("here", MIXED).logarithmic() == ["refinement.image_weight", "coarse.width"]


def test_a_grid_has_both_ends_and_even_spaces_on_each_scale():
    grid = space(image_weight=tune.loguniform(1, 10_000), alpha=tune.uniform(0, 1)).grid(17)
    weights = list(dict.fromkeys(point["refinement.image_weight"] for point in grid))
    alphas = list(dict.fromkeys(point["refinement.alpha"] for point in grid))
    assert weights == pytest.approx([1, 10_000 ** (1 / 3), 10_000 ** (2 / 3), 10_000])  # 4 by 4 is all that 17 hold
    assert alphas == pytest.approx([0, 1 / 3, 2 / 3, 1])
    assert len(grid) == 16 == len({tuple(point.values()) for point in grid})
    assert (weights[0], weights[-1], alphas[-1]) == (1.0, 10_000.0, 1.0)


def test_a_grid_has_all_choices_and_no_whole_number_twice():
    grid = space(discriminator=tune.choice(["stack", "image"]), batch_size=tune.randint(2, 5)).grid(100)
    sizes = [2, 3, 4]
    assert [tuple(point.values()) for point in grid] == [(c, size) for c in ("stack", "image") for size in sizes]
    assert all(type(point["refinement.batch_size"]) is int for point in grid)


def test_a_grid_lies_on_the_steps_of_a_setting():
    assert [p["refinement.mask_weight"] for p in space(mask_weight=tune.quniform(0, 2, 0.5)).grid(4)] == [
        0,
        0.5,
        1.5,
        2,
    ]


def test_a_grid_that_is_too_small_says_how_many_trials_it_takes():
    three = space(
        alpha=tune.uniform(0, 1), mask_weight=tune.uniform(0, 4), discriminator=tune.choice(["stack", "a", "b"])
    )
    with pytest.raises(ValueError, match=r"at least 12 trials.*11 are left.*Give --trials 13 or more"):
        three.grid(11)
    assert len(three.grid(12)) == 12  # 13 trials, the paper's own among them


def test_random_points_are_a_function_of_seed_and_number():
    mixed, again = Space("here", MIXED), Space("elsewhere", dict(MIXED))
    assert [mixed.sample(3, n) for n in (5, 1)] == [again.sample(3, n) for n in (5, 1)]
    assert mixed.sample(3, 5) != mixed.sample(4, 5) != mixed.sample(3, 4)


def test_random_points_lie_in_their_ranges_and_on_their_steps():
    points = [Space("here", MIXED).sample(0, number) for number in range(200)]
    fits = {
        "refinement.alpha": lambda v: type(v) is float and 0 <= v <= 1,
        "refinement.image_weight": lambda v: type(v) is float and 1 <= v <= 10_000,
        "refinement.batch_size": lambda v: type(v) is int and 2 <= v <= 8,
        "refinement.width": lambda v: type(v) is int and v in (16, 32, 48, 64),
        "coarse.width": lambda v: type(v) is int and 1 <= v <= 1024,
        "refinement.mask_weight": lambda v: type(v) is float and 0 <= v <= 4 and v * 2 == int(v * 2),
        "refinement.discriminator": lambda v: v in ("stack", "image", "pair"),
    }
    assert all(list(point) == list(fits) for point in points)
    assert [(path, p[path]) for p in points for path, fit in fits.items() if not fit(p[path])] == []
    for path, least in {"refinement.batch_size": 7, "refinement.width": 4, "refinement.discriminator": 3}.items():
        assert len({point[path] for point in points}) == least, "every value comes up"


def test_half_of_the_random_points_lie_below_the_middle_of_their_scale():
    points = [Space("here", MIXED).sample(7, number) for number in range(200)]
    middle = {path: median(float(point[path]) for point in points) for path in list(MIXED)[:2]}
    # the share below the middle has a standard deviation of 0.035: 0.1 either way is nearly three of them
    assert 0.4 < middle["refinement.alpha"] < 0.6
    assert 10_000**0.4 < middle["refinement.image_weight"] < 10_000**0.6


def test_whole_numbers_are_drawn_equally_often():
    sizes = space(batch_size=tune.randint(2, 5))
    drawn = [sizes.sample(0, number)["refinement.batch_size"] for number in range(900)]
    # 300 of each expected, with a standard deviation of sqrt(900 * 1/3 * 2/3) = 14
    assert all(abs(drawn.count(size) - 300) < 4 * 14 for size in (2, 3, 4)), [drawn.count(n) for n in (2, 3, 4)]


@pytest.mark.parametrize(
    ("paths", "stage"),
    [
        (["refinement.alpha"], 1),
        (["refinement.alpha", "coarse.lr"], 0),
        (["coarse.width"], 0),
        (["pose_maps.radius"], 0),
        (["pose_maps.radius", "refinement.alpha"], 0),
    ],
)
def test_trials_share_the_stages_before_the_first_that_is_searched(paths: list[str], stage: int):
    assert first_searched_stage(Space("here", {path: tune.uniform(0, 1) for path in paths}), vdg()) == stage


def test_the_systems_own_values_are_read_at_the_same_paths():
    given = vdg()
    radius = dataclasses.asdict(given.pose_maps)["radius"]
    searched = Space("here", {"refinement.alpha": tune.uniform(0, 1), "pose_maps.radius": tune.randint(1, 9)})
    assert current_values(searched, given) == {"refinement.alpha": 0.5, "pose_maps.radius": radius}
    assert current_values(load_space(None, "vdg"), system("vdg", "market1501", "w"))["refinement.mask_weight"] == 2.0
    rate = Space("here", {"refinement.lr": tune.loguniform(1e-6, 1e-3)})  # of the training that the stage holds
    assert current_values(rate, given) == {"refinement.lr": given.stages[-1].training.lr}
