"""How long graphs take: what nodes ask of onnxruntime's kernels, times prices that were measured once.

In: a graph and the sizes of its tensors. Out: seconds. `kernels`, `products` and `moves` say what a node asks for, in
the words of `use`; `fusions` what onnxruntime joins when it loads a graph; `table` reads the prices. Imports
`mari_onnx.model`.
"""
