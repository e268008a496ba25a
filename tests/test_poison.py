"""An image that cannot be decoded any more: the stage stops at the step that meets it, and says so."""

import re
from pathlib import Path

import pytest

from posegen.data.shards.manifest import read_arrow
from posegen.training.events import SAME, read_failures
from tests.test_pipeline import SMALL, start

pytestmark = pytest.mark.long


def spoil(shard: Path) -> None:
    """Overwrites the images of a shard with zeros, in place: its size stays, so it counts as whole."""
    rows = read_arrow(shard)
    _, _, data = rows.column("image").buffers()
    content = data.to_pybytes()
    whole = shard.read_bytes()
    start_of = whole.index(content)
    del rows
    shard.write_bytes(whole[:start_of] + bytes(len(content)) + whole[start_of + len(content) :])
    assert len(shard.read_bytes()) == len(whole)


def test_the_same_failure_at_the_same_step_thrice_ends_the_stage_with_what_it_saw(tmp_path: Path):
    run = tmp_path / "run"
    import ray

    from posegen.runs import pipeline
    from posegen.runs.options import Options, plan_for

    pipeline.run(plan_for(Options(run=run, set=list(SMALL), pairs=10)), until="shards")
    assert not ray.is_initialized()
    for shard in (run / "shards").glob("train-*.arrow"):
        if not shard.name.endswith(".pairs.arrow"):
            spoil(shard)
    process = start(run)
    output, _ = process.communicate(timeout=400)
    assert process.returncode == 2, output
    found = re.search(r"error: stage 'coarse' stopped: the same failure came 3 times at step (\d+)", output)
    assert found, output
    assert "Traceback" not in output
    kept = read_failures(run / "stages" / "coarse")
    assert [failure["step"] for failure in kept["failures"]] == [int(found[1])] * SAME
