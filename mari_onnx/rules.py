"""What a package imports to add rules for its own operators (docs/writing-rules.md, "In a package of your own").

    mapped     axes along which an operator handles each position by itself: all that most operators need
    Through    one such axis: its index in each input (None: that input lacks it) and in each output
    shape_of   element types and shapes of the outputs, which onnx cannot know of a custom operator
    outputs, first, dtype_of   help to write these
    rule       an operator taken apart; a Context has its node and inputs, and `Decline` refuses with a reason
"""

from mari_onnx.engine.batching import Through, mapped
from mari_onnx.engine.ir.value import Decline
from mari_onnx.engine.rule import Context, rule
from mari_onnx.engine.rules.microsoft.shapes import dtype_of, first, outputs, shape_of

__all__ = ["Context", "Decline", "Through", "dtype_of", "first", "mapped", "outputs", "rule", "shape_of"]
