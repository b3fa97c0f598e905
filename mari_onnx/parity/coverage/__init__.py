"""How much of what a model reacts to the requests of a check reach, as coverage does for code.

In: both models and requests. Out: goals, which of them were met, and further requests. Imports `parity.domains` and
`parity.requests`.
"""
