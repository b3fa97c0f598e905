"""The graph that is being written, and what the engine knows of a source tensor.

In: nodes of a source graph. Out: `Value` (axes and a body), `Tensor` and `Node` of the new graph, and the `Builder`
that writes them for any opset. Imports `engine.cost` and `mari_onnx.model`.
"""
