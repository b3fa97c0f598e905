"""`python -m benchmarks` is `python benchmarks/run.py`."""

import sys

from benchmarks import run

sys.exit(run.main())
