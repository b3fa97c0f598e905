"""Ranking models of public packages, exported with weights drawn at random, and what an optimization leaves of them.

In: packages of PyPI in an environment of their own (`export`). Out: graphs with side files, and a table of their
residuals (`run`).
"""
