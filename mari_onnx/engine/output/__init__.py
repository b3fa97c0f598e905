"""The finished graph: dead nodes dropped, Add fused into Gemm, names, metadata, and what the target's kernels like.

In: the Builder and the tensors that are outputs. Out: an onnx model. Imports `engine.cost` and `engine.ir`.
"""
