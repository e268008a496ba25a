"""Prepare images, train all stages, score them and write a report.

    python flows/full_pipeline.py                                              # embedded data, a laptop, minutes
    python flows/full_pipeline.py --system pg2 --dataset market1501 --root DIR # published settings, a GPU
    python flows/full_pipeline.py --help

Rerun the same command to resume; finished steps are not repeated.
"""

from posegen.cli import full_pipeline, run_command

if __name__ == "__main__":
    run_command(full_pipeline)
