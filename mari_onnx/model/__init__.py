"""The ONNX file: loading, signature, symbolic shapes, preparation, saving."""
