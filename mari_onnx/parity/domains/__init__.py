"""What an input may hold, from how the graph uses it.

In: both models and the layout of their inputs. Out: a `Domain` for each input. Imports `parity.layout`.
"""
