"""The parity check: are the outputs of two models equal on the same requests?"""

from mari_onnx.parity.requests.request import Request
from mari_onnx.parity.result import CheckResult
from mari_onnx.parity.settings import Settings
from mari_onnx.parity.several.check import check

__all__ = ["CheckResult", "Request", "Settings", "check"]
