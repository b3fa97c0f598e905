"""Measurements of mari-onnx; each module is a command."""
