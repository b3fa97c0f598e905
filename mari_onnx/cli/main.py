"""`mari-onnx`: finds the command, and turns what goes wrong into one message and an exit code."""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Sequence
from typing import Any

import click

from mari_onnx import __version__
from mari_onnx.cli.limits import asked_to_end, end_on_signals
from mari_onnx.cli.streams import outlast
from mari_onnx.errors import MariError, WriteError, no_room, without_room

INTERRUPTED = 130
INTERNAL = 70
EXIT_CODES = {
    0: "done; also if nothing could be computed once per request and the model was written unchanged",
    1: "outputs differ; nothing was written",
    2: "a flag, a side or a path is wrong",
    3: "the model cannot be read, is invalid, or cannot be run",
    4: "nothing could be computed once per request, and --fail-unchanged was given; OUT was written as it is",
    5: "the execution provider asked for is not there",
    6: "the output cannot be written",
    7: "--timeout ran out",
    8: "the two models cannot be compared; optimize wrote nothing",
    9: "the output is slower than IN, and --if-slower fail was given; nothing was written",
    10: "the server that keeps items' rows does not answer",
    INTERNAL: "a defect of mari-onnx; please report what --debug prints",
    INTERRUPTED: "interrupted with Ctrl-C; nothing was written",
    143: "ended with SIGTERM; nothing was written",
}
"""What they mean: the table of docs/cli.md."""

# Help lines are here, so that listing the commands imports none of them.
_COMMANDS = {
    "optimize": "Rewrite a model so that the user's part runs once per request.",
    "split": "Split a model into a user's, an item's and a scoring part.",
    "check": "Compare two models on the same requests.",
    "inspect": "Show what would run once per request, and what stops the rest.",
    "bench": "Time models against each other.",
    "precompute": "Run a split model's item part over a catalogue, into a store.",
    "triton": "Write a model repository for Triton Inference Server.",
    "calibrate": "Measure how long operators take on this machine, for --prices.",
}


class _Commands(click.Group):
    """Imports a command's module when the command is named."""

    def list_commands(self, _: click.Context) -> list[str]:
        return [name for name in _COMMANDS if _exists(name)]

    def get_command(self, _: click.Context, name: str) -> click.Command | None:
        if name not in _COMMANDS or not _exists(name):
            return None
        found: click.Command = getattr(importlib.import_module(f"mari_onnx.cli.{name}"), name)
        return found

    def resolve_command(
        self, context: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in self.list_commands(context):
            import difflib

            close = difflib.get_close_matches(args[0], _COMMANDS, n=1)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            context.fail(f"There is no command {args[0]!r}.{hint}")
        return super().resolve_command(context, args)

    def format_commands(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, _COMMANDS[name]) for name in self.list_commands(context)])


def _exists(name: str) -> bool:
    from importlib.util import find_spec

    return find_spec(f"mari_onnx.cli.{name}") is not None


@click.command(
    cls=_Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="\b\nExit codes:\n" + "\n".join(f"{code:>5}  {what}" for code, what in EXIT_CODES.items()),
)
@click.version_option(__version__, prog_name="mari-onnx")
def cli() -> None:
    """Make ONNX ranking models compute the user's part once per request, not once per candidate."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line and exits the process with the code that docs/cli.md lists."""
    end_on_signals()
    outlets = outlast()
    if not sys.warnoptions:
        warnings.simplefilter("ignore")  # of libraries; what a user should know is a note
    code = run(arguments)
    sys.stdout.flush()
    lost = next((each.lost for each in outlets if each.lost is not None), None)
    if lost is not None:
        _complain(f"cannot write what was printed: {lost.strerror}")
        code = code or WriteError.exit_code
    sys.exit(code)


def run(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line and answers its exit code."""
    state: dict[str, Any] = {"debug": False}
    args = list(sys.argv[1:] if arguments is None else arguments)
    try:
        answer = cli.main(args, prog_name="mari-onnx", standalone_mode=False, obj=state)
        return answer if isinstance(answer, int) else 0
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except click.exceptions.Exit as error:
        return error.exit_code
    except MariError as error:
        _show_traceback(state)
        _complain(str(error))
        return error.exit_code
    except (KeyboardInterrupt, click.Abort):
        _complain("interrupted; nothing was written")
        return INTERRUPTED
    except MemoryError:
        _show_traceback(state)
        _complain("not enough memory for this model; nothing was written")
        return MariError.exit_code
    except Exception as error:
        _show_traceback(state)
        if without_room(error):
            full = no_room(error)
            _complain(str(full))
            return full.exit_code
        if (code := asked_to_end()) is not None:
            _complain("interrupted; nothing was written")
            return code
        _complain(
            f"a defect of mari-onnx: {type(error).__name__}: {error}\n"
            "  hint: nothing was written; run again with --debug and report what it prints"
        )
        return INTERNAL


def _show_traceback(state: dict[str, Any]) -> None:
    if state["debug"]:
        import traceback

        traceback.print_exc()


def _complain(message: str) -> None:
    click.secho("error: ", fg="red", bold=True, err=True, nl=False)
    click.echo(message, err=True)
