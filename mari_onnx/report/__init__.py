"""What was done to a model and why not more, as data (docs/report.md) and for a terminal."""

from mari_onnx.report.records import Input, Node, Totals
from mari_onnx.report.report import SCHEMA_VERSION, Report, build

__all__ = ["SCHEMA_VERSION", "Input", "Node", "Report", "Totals", "build"]
