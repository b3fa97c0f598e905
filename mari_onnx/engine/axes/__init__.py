"""Axes of Values: choosing positions along them, bringing two Values to the same axes, and writing a body as a tensor.

In: Values. Out: Values with other axes, or one tensor (`materialize`, the only place where one row becomes N).
Imports `engine.ir` and `engine.cost`.
"""
