"""Are outputs equal? Errors over all requests, against what the source's own error allows.

In: outputs of both models and of a float64 run. Out: an `OutputResult` for each output. Imports `parity.requests`.
"""
