"""Search VDG's loss weights: parallel trials validated on held-out people, the best compared with the paper's.

    python flows/tune_vdg.py                                              # embedded data, a laptop, minutes
    python flows/tune_vdg.py --dataset market1501 --root DIR --concurrent 4
    python flows/tune_vdg.py --help

Rerun the same command to resume; finished trials are not repeated. Other systems: `posegen tune SYSTEM`.
"""

from posegen.cli import run_command, tune_vdg

if __name__ == "__main__":
    run_command(tune_vdg)
