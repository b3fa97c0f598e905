"""Options that several commands share, and what they mean."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from mari_onnx.cli.limits import load_libraries, time_limit

if TYPE_CHECKING:
    import onnx

    from mari_onnx.sides.resolve import Sides

F = TypeVar("F", bound=Callable[..., Any])

_SIDE_WORDS = ("user", "item", "cross")


def _axes(context: click.Context, parameter: click.Parameter, given: tuple[str, ...]) -> dict[str, int]:
    """`1`, `X=2` -> {"": 1, "X": 2}."""
    found: dict[str, int] = {}
    for text in given:
        name, equals, axis = text.rpartition("=")
        if not axis.strip().isdecimal() or (equals and not name):
            raise click.BadParameter(f"{text!r} is not an axis such as 1, or NAME=1; axes count from 0")
        if found.setdefault(name, int(axis)) != int(axis):
            raise click.BadParameter(f"{text!r} contradicts {name + equals}{found[name]}; give one of them")
    return found


def side_options(command: F) -> F:
    """--user, --item, --cross, --rest, --sides, --candidate-axis, --shape, --count, --guess; see `sides_from`."""
    options = [
        click.option(
            "--user",
            multiple=True,
            metavar="PATTERN",
            help="Inputs equal for all candidates of a request: the user, the history, and "
            "request-level context (time, device, page). Repeatable. A shell pattern on names, "
            "or columns of a packed input: 'X[:, 0:12]', 'X[:, [0, 3, 7]]'.",
        ),
        click.option(
            "--item",
            multiple=True,
            metavar="PATTERN",
            help="Inputs that depend on the candidate only.",
        ),
        click.option(
            "--cross",
            multiple=True,
            metavar="PATTERN",
            help="Inputs that depend on both; use it for any input that has one row per candidate.",
        ),
        click.option(
            "--rest", type=click.Choice(_SIDE_WORDS), help="The side of every input that no other flag names."
        ),
        click.option(
            "--sides",
            "side_file",
            type=click.Path(path_type=Path),
            metavar="FILE",
            help="A TOML side file. Default: MODEL.sides.toml beside the model, if there is one. Flags win over it.",
        ),
        click.option(
            "--candidate-axis",
            "candidate_axes",
            multiple=True,
            callback=_axes,
            metavar="[NAME=]AXIS",
            help="The axis of item and cross inputs whose length is the number of candidates, or that of one input of "
            "any side. Repeatable.  [default: 0]",
        ),
        click.option(
            "--shape",
            "shapes",
            multiple=True,
            metavar="NAME=DIMS",
            help="The shape of an input, where the model has none or a fixed one: item_id=N,32. Each entry is a "
            "number, a symbol (equal symbols mean equal sizes) or ? for unknown. Repeatable.",
        ),
        click.option(
            "--count",
            "counts",
            multiple=True,
            metavar="PATTERN",
            help="Inputs whose value is the number of candidates: one integer, of shape [] or [1]. They have no side.",
        ),
        click.option(
            "--index",
            "index",
            multiple=True,
            metavar="NAME",
            help="The input that says, for each candidate, which row of the user inputs is its user's, in a model that "
            "takes several users in one run (docs/batching.md). It has no side.",
        ),
        click.option(
            "--guess",
            is_flag=True,
            help="Guess the sides of the other inputs from their names. A wrong guess of `user` makes a "
            "wrong model, so look at the sides it prints.",
        ),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def sides_from(options: Mapping[str, Any], model: onnx.ModelProto, path: str | Path | None = None) -> Sides:
    """The sides of `model` by the options of `side_options`, a side file, and its metadata.

    Args:
        options: a command's keyword arguments, or its click context.
        model: the source model.
        path: where it was read from; a side file is looked for beside it.

    Raises:
        UsageError: see `mari_onnx.sides.resolve`.
    """
    from mari_onnx.api.given import resolved

    if isinstance(options, click.Context):
        options = options.params
    return resolved(model, path, run=options.get("check", True), **flags_from(options))


def flags_from(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options of `side_options` as arguments of `mari_onnx.api.given.resolved`."""
    from mari_onnx.sides.shapes import read

    axes = dict(options.get("candidate_axes", {}))
    return {
        "sides": options.get("side_file"),
        "user": options.get("user", ()),
        "item": options.get("item", ()),
        "cross": options.get("cross", ()),
        "rest": options.get("rest"),
        "candidate_axis": axes.pop("", None),
        "candidate_axes": axes,
        "guess": options.get("guess", False),
        "shapes": dict(map(read, options.get("shapes", ()))),
        "count": options.get("counts", ()),
        "batched": options.get("batched"),
        "index": options.get("index", ()),
        "index_name": options.get("index_name"),
    }


def data_option(command: F) -> F:
    """--data, of commands that draw requests too."""
    option = click.option(
        "--data",
        type=click.Path(path_type=Path),
        metavar="FILE",
        help="Recorded requests, checked in addition to drawn ones: .npz, a folder of them, or .parquet.",
    )
    return option(command)


def threads_option(command: F) -> F:
    """--threads, of commands that choose by time."""
    option = click.option(
        "--threads",
        type=click.IntRange(min=1),
        default=1,
        show_default=True,
        metavar="T",
        help="The number of threads per operator (intra_op_num_threads) that you serve with. What is written is chosen "
        "for it.",
    )
    return option(command)


def prices_option(command: F) -> F:
    """--prices, of commands that choose by time."""
    option = click.option(
        "--prices",
        type=click.Path(path_type=Path),
        metavar="FILE",
        help="Operator times that `mari-onnx calibrate` measured on your machine, instead of those that come with "
        "mari-onnx.",
    )
    return option(command)


def request_id_option(command: F) -> F:
    """--request-id."""
    option = click.option(
        "--request-id",
        default="request_id",
        show_default=True,
        metavar="COLUMN",
        help="The .parquet column that holds the request id: rows with the same id are one request.",
    )
    return option(command)


def provider_option(command: F) -> F:
    """--provider, as `providers`."""
    option = click.option(
        "--provider",
        "providers",
        multiple=True,
        default=("auto",),
        show_default=True,
        metavar="NAME",
        help="What to run the check on: auto (the CPU, and CUDA if a GPU answers), cpu, cuda, tensorrt, or "
        "onnxruntime's full name. Repeatable. If a provider that you name is not available or runs no node, that is an "
        "error (exit code 5). TF32 is off.",
    )
    return option(command)


def custom_ops_option(command: F) -> F:
    """--custom-ops, whose libraries all sessions of the command have; the command itself does not see it."""

    @functools.wraps(command)
    def loaded(*args: Any, custom_ops: tuple[Path, ...], **kwargs: Any) -> Any:
        if not custom_ops:
            return command(*args, **kwargs)
        from mari_onnx import runtime

        with runtime.custom_ops(custom_ops):
            return command(*args, **kwargs)

    option = click.option(
        "--custom-ops",
        multiple=True,
        type=click.Path(path_type=Path),
        metavar="LIBRARY",
        help="A shared library of custom operators that the model needs to run. Its code is run, so name one that you "
        "trust; none is loaded otherwise. Repeatable.",
    )
    wrapped: Any = option(loaded)
    return wrapped  # type: ignore[no-any-return]


class WithJson(click.Command):
    """A command whose `--json` may stand without a file: then it is standard output, whatever comes next."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        after = [*args[1:], ""]
        told = [
            "--json=-" if word == "--json" and following != "-" and not following.endswith(".json") else word
            for word, following in zip(args, after, strict=True)
        ]
        return super().parse_args(ctx, told)


def writable(context: click.Context, parameter: click.Parameter, file: Path | None) -> Path | None:
    """For an option that names a file to write: what stands in the way is said before the work and not after it."""
    device = file is not None and file.exists() and not file.is_file() and not file.is_dir()
    if file is not None and str(file) != "-" and not device:
        from mari_onnx.model.save import check_target

        check_target(file)
    return file


def json_option(what: str) -> Callable[[F], F]:
    """--json, as `json_file`; what: what is written."""
    return click.option(
        "--json",
        "json_file",
        type=click.Path(path_type=Path, allow_dash=True),
        callback=writable,
        metavar="FILE",
        help=f"Write {what} as JSON; - for standard output, in place of the summary.",
    )


def html_option(command: F) -> F:
    """--html, as `html_file`."""
    option = click.option(
        "--html",
        "html_file",
        type=click.Path(path_type=Path),
        metavar="FILE",
        help="Write the graph before and after as one HTML page that works offline (docs/report.md).",
    )
    return option(command)


def check_beside(path: Path, others: Mapping[str, Path]) -> None:
    """Refuses `path`, which is to be written, where it cannot be or is one of `others`.

    Raises:
        OutputInTheWay: it is one of `others` (what it is -> path), or a folder.
        WriteError: it cannot be written.
    """
    from mari_onnx.errors import OutputInTheWay
    from mari_onnx.model.save import check_target

    target = check_target(path)
    for name, other in others.items():
        if target == other.resolve():
            raise OutputInTheWay(f"{path} would overwrite {name}", "name another file")


def common_options(command: F) -> F:
    """--timeout and --debug, which the command itself does not see."""

    @functools.wraps(command)
    def limited(*args: Any, timeout: float | None, **kwargs: Any) -> Any:
        runs = kwargs.get("check", kwargs.get("measure", True))
        load_libraries("onnx", *(["onnxruntime"] if runs else []))
        if runs:
            from mari_onnx.runtime import load

            load(silent=True)
        with time_limit(timeout):
            return command(*args, **kwargs)

    options = [
        click.option(
            "--timeout",
            type=click.FloatRange(min=0, min_open=True),
            metavar="SECONDS",
            help="Stop after this time with exit code 7 and write nothing.",
        ),
        click.option(
            "--debug",
            is_flag=True,
            is_eager=True,
            expose_value=False,
            callback=lambda context, _, value: _note_debug(context, value),
            help="Print the Python traceback of an error.",
        ),
    ]
    wrapped: Any = limited
    for option in reversed(options):
        wrapped = option(wrapped)
    return wrapped  # type: ignore[no-any-return]


def _note_debug(context: click.Context, value: bool) -> None:
    if value:
        context.ensure_object(dict)["debug"] = True


def weighted_numbers(
    context: click.Context, parameter: click.Parameter, value: str | None
) -> int | dict[int, float] | None:
    """``500`` -> 500; ``1:0.2,500:0.8`` -> {1: 0.2, 500: 0.8}."""
    if value is None:
        return None
    try:
        if ":" not in value and "," not in value:
            found: int | dict[int, float] = int(value)
            least: float = int(value)
        else:
            parts = [part.partition(":") for part in value.split(",")]
            found = {int(n): float(weight) if colon else 1.0 for n, colon, weight in parts}
            least = min(min(found), *(1 if weight > 0 else 0 for weight in found.values()))
        if least < 1:
            raise ValueError
    except ValueError:
        raise click.BadParameter(f"{value!r} is not a positive number such as 500, or several with weights such as "
                                 "1:0.2,500:0.8") from None  # fmt: skip
    return found
