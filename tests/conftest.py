"""Before any test imports torch: several test processes share the cores, and waiting threads would stall them all."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
