"""Which input belongs to whom: user, item or cross.

In: a signature, and what flags, a side file, metadata or names say. Out: `Sides`. Imports `mari_onnx.model` alone.
"""
