"""The tests. Imported before PyTorch is, so that what its threads wait like is set here, also for started processes."""

import os

# Idle threads of OpenMP wait for work in a loop: on few cores that several processes share, that took most of the time.
os.environ |= {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0"}
