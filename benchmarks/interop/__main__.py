"""`python -m benchmarks.interop`: exports what is missing, optimizes and measures everything."""

from benchmarks.interop.run import main

main()
