"""`python -m mari_onnx` is `mari-onnx`."""

from mari_onnx.cli.start import main

if __name__ == "__main__":
    main()
