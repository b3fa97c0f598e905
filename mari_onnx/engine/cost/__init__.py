"""What a graph costs: FLOPs and bytes for reports, and an estimate of time for choices.

In: nodes and shapes. Out: numbers. Imports `mari_onnx.model` alone.
"""
