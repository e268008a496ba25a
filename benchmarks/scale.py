"""What grows with images, pairs, shards and workers, and how: `python benchmarks/scale.py CASE --help`.

Sizes take turns in fresh processes, and medians count. What is printed are amounts for the largest size and the
exponents of growth (least squares in log-log): 0 does not grow, 1 grows with it, 2 with its square. docs/scale.md is
made of these numbers. `OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE` keeps other programs of the machine from deciding.
"""

from collections.abc import Sequence
from typing import Annotated

import cyclopts
from measuring import print_growth, repeated

Sizes = Annotated[Sequence[int], cyclopts.Parameter(consume_multiple=True)]

app = cyclopts.App(help=__doc__)


@app.command
def metadata(images: Sizes = (10**3, 10**4, 10**5, 10**6), repeats: int = 3) -> None:
    """The driver's part for so many images: listing, plan, pickles, summaries, manifest. No image is opened."""
    import scale_metadata

    print_growth("image", repeated(scale_metadata.metadata, images, repeats), smallest=10**4)


@app.command
def reader(images: Sizes = (10**3, 10**4, 10**5), repeats: int = 3) -> None:
    """The listing of a folder of so many images, from the disk."""
    import scale_metadata

    print_growth("image", repeated(scale_metadata.reader, images, repeats))


@app.command
def manifest(shards: Sizes = (10**3, 10**4, 10**5, 5 * 10**5), repeats: int = 3) -> None:
    """Opening a data set of so many shards of 2,000 images, its index and windows, from a made-up manifest."""
    import scale_metadata

    print_growth("shard", repeated(scale_metadata.manifest, shards, repeats))


@app.command
def files(shards: Sizes = (10**3, 10**4, 10**5), repeats: int = 3) -> None:
    """Where the steps of a run stand, with three files for each of so many shards."""
    import scale_metadata

    print_growth("shard", repeated(scale_metadata.listed_files, shards, repeats))


@app.command
def order(images: Sizes = (10**4, 10**5, 10**6, 10**7), repeats: int = 3) -> None:
    """The permutation of an epoch's pairs, 19 an image."""
    import scale_metadata

    print_growth("image", repeated(scale_metadata.order, images, repeats), smallest=10**5)


@app.command
def tasks(shards: Sizes = (100, 1000, 10_000), images: int = 20, cpus: int = 2) -> None:
    """What Ray Data takes for so many tasks that make no shard, each with the metadata of a few images."""
    import scale_storage

    scale_storage.tasks(shards, images, cpus)


@app.command(name="bytes")
def stored(images: Sizes = (10**3, 10**4, 10**5), cpus: int = 2, seconds: float = 5.0) -> None:
    """Shards of so many photographs of 128x64, really made, and training batches drawn from them.

    By Ray Data on so many CPUs; 0 makes them in one process without Ray.
    """
    import scale_storage

    scale_storage.stored(images, cpus, seconds)


@app.command
def maps() -> None:
    """How many files a process can map at once, by mapping one small file again and again."""
    import scale_storage

    scale_storage.most_maps()


@app.command
def workers(counts: Sizes = (1, 2, 4), pairs: int = 4, steps: int = 60, width: int = 16, repeats: int = 5) -> None:
    """Training by so many processes with the same pairs a worker: time of a step, and of its parts."""
    import scale_training

    scale_training.workers(counts, pairs, steps, width, repeats)


@app.command
def checkpoints(every: int = 20, steps: int = 200, width: int = 16, repeats: int = 5) -> None:
    """Training with a checkpoint every so many steps, against one with none but the last."""
    import scale_training

    scale_training.checkpoints(every, steps, width, repeats)


if __name__ == "__main__":
    app()
