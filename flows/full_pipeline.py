"""Images in; trained stages, scores and a report out.

    python flows/full_pipeline.py                                              # embedded data, a laptop, minutes
    python flows/full_pipeline.py --system pg2 --dataset market1501 --root DIR # published settings, a GPU
    python flows/full_pipeline.py --help

The same command goes on where it stopped, and redoes nothing that is done.
"""

from posegen.cli import full_pipeline, run_command

if __name__ == "__main__":
    run_command(full_pipeline)
