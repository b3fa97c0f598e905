"""Model repositories for NVIDIA Triton Inference Server.

In: a model file, or the folder of a split. Out: folders that `tritonserver --model-repository` reads, each with
`config.pbtxt`, the files of a version, and a README.md with a client's call. `config` writes configurations by the
official protocol buffers (`tritonclient`), `onnx_backend` serves one file or the parts of a split, `batched` and
`ragged` a file for several requests, `python_backend` and `model` a `mari_onnx.serving.Service`; `repository` puts
folders in place. Docs: docs/triton.md.
"""
