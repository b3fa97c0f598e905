"""Rules of operators that run a graph within: If, Loop and Scan."""

from mari_onnx.engine.rules.control import branch, loop

__all__ = ["branch", "loop"]
