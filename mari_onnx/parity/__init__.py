"""The parity check: are the outputs of two models equal on the same requests?"""

from mari_onnx.parity.check import CheckResult, Settings, check
from mari_onnx.parity.feeds import Request

__all__ = ["CheckResult", "Request", "Settings", "check"]
