"""`python -m benchmarks`: every benchmark whose targets are promises."""

import sys

from benchmarks import first_layer

sys.exit(first_layer.main())
