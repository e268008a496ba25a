import subprocess
import sys
from pathlib import Path

import pytest

import posegen
from posegen.catalog import SYSTEMS, override, settings, system, variants


@pytest.mark.parametrize("name", sorted(SYSTEMS))
def test_every_variant_of_every_data_set_exists(name):
    for variant in variants(name):
        for dataset, size in (("market1501", (128, 64)), ("deepfashion", (256, 256)), ("synthetic", (64, 32))):
            described = system(name, dataset, variant)
            assert (described.name, described.variant, described.size) == (name, variant, size)
    assert variants(name)[0] == "full"


@pytest.mark.parametrize(("size", "steps"), [((128, 64), 22_000), ((160, 80), 22_000), ((192, 96), 30_000)])
def test_a_folder_takes_the_settings_of_the_nearer_size(size, steps):
    described = system("vdg", "folder", size=size)
    assert described.size == size
    assert described.stages[0].training.steps == steps


def test_systems_of_two_stages_call_them_alike():
    assert {tuple(stage.name for stage in system(name).stages) for name in ("pg2", "vdg")} == {("coarse", "refinement")}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("vgd",), "no system is called 'vgd'. Did you mean 'vdg'. There are: vdg, pg2"),
        (("pg2", "market1501", "g1"), "no variant of pg2 is called 'g1'.*There are: full, g1-l1"),
        (("vdg", "marked1501"), "Did you mean 'market1501'.*market1501, deepfashion, synthetic, .*folder"),
        (("vdg", "folder"), r"give one as \(height, width\)"),
        (("vdg", "folder", "full", (256, 176)), "256x160 or 256x192"),
    ],
)
def test_unknown_names_list_the_known_ones(arguments, message):
    with pytest.raises(ValueError, match=message):
        system(*arguments)


def test_unknown_names_have_no_variants():
    with pytest.raises(ValueError, match="There are: vdg, pg2"):
        variants("nothing")


@pytest.mark.parametrize(
    ("path", "given", "expected"),
    [
        ("coarse.steps", "200", 200),
        ("coarse.steps", 200, 200),
        ("coarse.lr", "1e-3", 1e-3),
        ("coarse.lr", 1, 1.0),
        ("coarse.flip", "false", False),
        ("coarse.flip", True, True),
        ("refinement.discriminator", "pair", "pair"),
    ],
)
def test_override_sets_one_field_and_keeps_the_rest(path, given, expected):
    before = system("vdg")
    after = override(before, {path: given})
    value = settings(after)[path]
    assert (value, type(value)) == (expected, type(expected))
    assert override(after, {path: settings(before)[path]}) == before


def test_override_of_nothing_is_the_system_itself():
    assert override(system("pg2"), {}) == system("pg2")


def test_override_of_the_pose_maps():
    assert override(system("vdg"), {"pose_maps.radius": "2"}).pose_maps.radius == 2.0


def test_override_does_not_change_its_argument():
    described = system("vdg")
    override(described, {"coarse.width": 8})
    assert described == system("vdg")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"coarse.stepps": 3}, "no setting 'coarse.stepps'. Did you mean 'coarse.steps'.*coarse.batch_size"),
        ({"corse.steps": 3}, "no setting 'corse.steps'. Did you mean 'coarse.steps'.*refinement.alpha"),
        ({"coarse": 3}, "no setting 'coarse'. .*coarse.steps"),
        ({"coarse.": 3}, "no setting 'coarse'"),
        ({"steps": "3"}, "no setting 'steps'.*pose_maps.radius, .*coarse.steps"),
        ({"coarse.size": "64,32"}, "no setting 'coarse.size'"),
        ({"coarse.name": "x"}, "no setting 'coarse.name'"),
        ({"coarse.steps": "3.5"}, "coarse.steps is '3.5'; expected a whole number"),
        ({"coarse.steps": 3.0}, "coarse.steps is 3.0; expected a whole number"),
        ({"coarse.steps": True}, "expected a whole number"),
        ({"coarse.lr": "fast"}, "coarse.lr is 'fast'; expected a number"),
        ({"coarse.lr": "nan"}, "expected a number"),
        ({"coarse.lr": None}, "expected a number"),
        ({"coarse.flip": "perhaps"}, "coarse.flip is 'perhaps'; expected true or false"),
        ({"refinement.discriminator": "triple"}, "expected one of stack, stack-with-coarse, pair"),
        ({"coarse.steps": "0"}, "coarse.steps is 0; it must be at least 1"),
        ({"coarse.batch_size": -2}, "coarse.batch_size is -2; it must be at least 1"),
        ({"coarse.lr": 0}, "coarse.lr is 0.0; it must be greater than 0"),
        ({"refinement.alpha": 1.5}, "refinement.alpha is 1.5; it must be at least 0 and at most 1"),
        ({"refinement.ema_decay": 1.0}, "it must be at least 0 and less than 1"),
    ],
)
def test_bad_paths_and_values_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        override(system("vdg"), settings)


def test_the_package_offers_what_it_lists():
    assert posegen.__all__ == sorted(posegen.__all__)
    assert dir(posegen) == posegen.__all__
    assert all(getattr(posegen, name) is not None for name in posegen.__all__)
    assert posegen.system("vdg") == system("vdg")
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        posegen.nothing  # noqa: B018


def test_importing_the_package_loads_no_torch():
    script = "import sys, posegen; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], cwd=Path(__file__).parents[1], check=False).returncode == 0
