"""Where the command starts: from here on Ctrl-C is a message, while the command line itself is still being imported."""

import sys


def main() -> None:
    try:
        from mari_onnx.cli.main import main as run

        run()
    except KeyboardInterrupt:
        sys.stderr.write("error: interrupted; nothing was written\n")
        sys.exit(130)
