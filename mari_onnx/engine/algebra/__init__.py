"""Sums, products and contractions of Values: the identities of docs/algebra.md.

In: Values whose axes are aligned. Out: Values, computed in the cheapest of the ways that are equal.
Imports `engine.analysis` and what that imports.
"""
