"""`mari_onnx.optimize` and `mari_onnx.inspect`."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mari_onnx import lossy
from mari_onnx.api.given import Axes, Dimensions, Model, Names, SidesLike, as_source, sides_of, tags
from mari_onnx.api.optimized import Optimized
from mari_onnx.api.rewriting import checked, rewritten
from mari_onnx.choices import Choices, nodes_named, options_for
from mari_onnx.errors import UsageError
from mari_onnx.parity.loss import MAX_TAU_LOSS

if TYPE_CHECKING:
    from mari_onnx.parity.requests.draw import Request
    from mari_onnx.report import Report


def optimize(
    model: Model,
    sides: SidesLike = None,
    *,
    user: Names = (),
    item: Names = (),
    cross: Names = (),
    rest: str | None = None,
    shapes: Dimensions | None = None,
    count: Names = (),
    candidate_axis: Axes = None,
    guess: bool = False,
    batched: str | None = None,
    index: Names = (),
    index_name: str | None = None,
    candidates: int | Mapping[int, float] | None = None,
    check: bool = True,
    requests: str | os.PathLike[str] | Iterable[Request] | None = None,
    providers: Sequence[str] = ("auto",),
    target: str = "cpu",
    threads: int = 1,
    prices: str | os.PathLike[str] | None = None,
    choices: Choices | None = None,
    skip: Names = (),
    if_slower: str | None = None,
    user_weights: str | None = None,
    max_tau_loss: float = MAX_TAU_LOSS,
) -> Optimized:
    """Rewrites a model so that what depends on the user alone is computed once per request.

    The output takes user inputs `[1, ..]` where the source takes `[N, ..]`, and the same item and cross inputs; names,
    order and types of inputs and outputs stay.

    Args:
        model: a path, or a `ModelProto`; it is only read.
        sides: `Sides`, a mapping of input name to "user", "item" or "cross", or the path of a side file. Without it,
            the side file beside the model, the model's metadata, and its dimensions are asked.
        user, item, cross: shell patterns on input names, one or several; `X[:, 0:12]` for columns of a packed input.
        rest: the side of every input that nothing else names.
        shapes: input name -> dimensions that the file lacks or fixes: sizes, symbols such as "N", None.
        count: inputs whose value is the number of candidates: one integer, of shape `[]` or `[1]`.
        candidate_axis: the axis of item and cross inputs that counts candidates, by default 0; or input -> its own.
        guess: take what the names of the other inputs look like. A wrong guess of "user" makes a wrong model.
        batched: write a model for several requests in one run, "grid", "index" or "offsets" (docs/batching.md);
            needs the check.
        index: the int32 or int64 input `[N]` that says, for each candidate, which row of the user inputs is its user's.
        index_name: the name of the input that "index" and "offsets" add.
        candidates: the N that rewrites have to pay for; or several, N -> how much its time counts. By default 16, 64
            and 500, which count alike.
        check: run both models and compare; a difference raises. Without it nothing is assumed that a run has to tell,
            and `requests` and `if_slower` are refused.
        requests: recorded requests, or their file, to compare on in addition to drawn ones.
        providers: what to run the check on: "auto" (the CPU, and CUDA if a GPU answers), "cpu", "cuda", ..
        target: what rewrites are chosen for: onnxruntime on the "cpu", any runtime ("portable"), or "cuda".
        threads: per operator, that the model is served with.
        prices: a table that `mari-onnx calibrate` wrote, instead of the package's own.
        choices: of an earlier run (`mari_onnx.choices.read_choices`): the same output is made again.
        skip: nodes that are not rewritten: shell patterns on their names, or on operators.
        if_slower: also time source and output against each other after the check, and where the output is slower
            "warn" in the report, "undo" what makes it so, or "fail".
        user_weights: "int8": 8-bit weights for products of the user that are faster so. The output is then not equal to
            the source; it is judged on `requests` by the order of candidates, of which `max_tau_loss` may be lost
            (1 less the mean of Kendall's tau, 0 to 1).

    Raises:
        SidesUnknown: nothing says which inputs are the user's.
        UsageError: a tag or another argument is wrong; UntaggedInput, TaggedTwice, NoSuchInput, SideFileError are some.
        ModelError: the model cannot be read or run.
        ProviderError: a provider that was asked for is not there.
        OutputsDiffer, CannotCompare: the check failed, or could not be made.
        CannotBatch: an output for several requests cannot be made.
        Slower: the output is slower, and `if_slower` is "fail".
    """
    source = as_source(model)
    said = tags(user, item, cross, rest, shapes, count, candidate_axis, guess)
    said |= {"index": [index] if isinstance(index, str) else [*index], "index_name": index_name}
    found = sides_of(source, sides, check, batched=batched, **said)
    table = None if prices is None else Path(prices)
    asked = nodes_named(source.model, [skip] if isinstance(skip, str) else skip)
    options = options_for(
        candidates, target=target, threads=threads, prices=table, choices=choices, skip=asked
    )
    if not check and found.several:
        what = "index" if found.indices else "batched"
        raise UsageError(f"{what} needs the check", "only running the model shows whether its requests mix")
    if not check and (requests is not None or if_slower is not None):
        what = "requests" if requests is not None else "if_slower"
        raise UsageError(f"{what} needs the check, and check is False", "leave one of them out")
    if user_weights is not None:
        lossy.refuse(found, target, check, requests is not None)
    if not check:
        return rewritten(source, found, options)
    with (
        tempfile.TemporaryDirectory(prefix="mari-onnx-") as folder,
        checked(
            source,
            found,
            Path(folder, "optimized.onnx"),
            options,
            requests=requests,
            providers=providers,
            if_slower=if_slower,
            threads=threads,
            max_tau_loss=max_tau_loss if user_weights is not None else None,
        ) as (done, _),
    ):
        return done


def inspect(
    model: Model,
    sides: SidesLike = None,
    *,
    user: Names = (),
    item: Names = (),
    cross: Names = (),
    rest: str | None = None,
    shapes: Dimensions | None = None,
    count: Names = (),
    candidate_axis: Axes = None,
    guess: bool = False,
    candidates: int | Mapping[int, float] | None = None,
    measure: bool = False,
    what_if: str | None = None,
) -> Report:
    """What `optimize` would do with the model, and why not more; nothing is written.

    What `optimize` would assume, for its check to verify, is assumed here too and marked in the report (`assumptions`).

    Args:
        model, sides, user, item, cross, rest, shapes, count, candidate_axis, guess, candidates: as for `optimize`.
        measure: run source and output, and see which work gives results equal for all candidates.
        what_if: "separation": count what a retrained model would save if the user's tokens, or columns, did not read
            the candidate, for each layer at which the two mix for good (`Report.separation`).

    Raises:
        SidesUnknown, UsageError, ModelError: as `optimize`; `what_if` is something else.
    """
    if what_if not in (None, "separation"):
        raise UsageError(f"what_if {what_if!r} is not known", 'it may be "separation"')
    source = as_source(model)
    found = sides_of(source, sides, **tags(user, item, cross, rest, shapes, count, candidate_axis, guess))
    done = rewritten(source, found, options_for(candidates, assume=True))
    if measure:
        done.measure()
    if what_if is not None:
        done.what_if_separated()
    return done.report
