"""What was done to a model and why not more, as data (docs/report.md) and for a terminal."""

from mari_onnx.report.report import SCHEMA_VERSION, Input, Node, Report, Totals, build

__all__ = ["SCHEMA_VERSION", "Input", "Node", "Report", "Totals", "build"]
