"""Rules of operators with subgraphs: If, Loop and Scan.

In and out: as for the other rules; they look into a subgraph by `Context.interpret` or node by node (`Context.visit`).
"""

from mari_onnx.engine.rules.control import branch, loop

__all__ = ["branch", "loop"]
