"""VDG's loss weights searched: trials in parallel, judged on people of their own, the best tested against the paper's.

    python flows/tune_vdg.py                                              # embedded data, a laptop, minutes
    python flows/tune_vdg.py --dataset market1501 --root DIR --concurrent 4
    python flows/tune_vdg.py --help

The same command goes on where it stopped, and repeats no finished trial. Other systems: `posegen tune SYSTEM`.
"""

from posegen.cli import run_command, tune_vdg

if __name__ == "__main__":
    run_command(tune_vdg)
