"""TfIdfVectorizer: how often each n-gram of a pool occurs in a row of tokens.

    tfidf(broadcast(x)) = broadcast(tfidf(x))        each row by itself: the user's tokens are counted once
    tfidf([u|x]) = tfidf(u) + tfidf(x)               n-grams of one token, modes TF and TFIDF

An n-gram of several tokens may lie across u and x. Mode IDF has a weight, not a count: it does not add up.
"""

from __future__ import annotations

from collections.abc import Sequence

from onnx import TensorProto

from mari_onnx.engine.algebra.sums import add
from mari_onnx.engine.axes.align import align, single
from mari_onnx.engine.axes.select import coalesce
from mari_onnx.engine.batching import Through, mapped, run
from mari_onnx.engine.ir.value import Cat, Decline, Value, axes_of
from mari_onnx.engine.rule import Context, rule

WORD, NUMBER = 2000.0, 250.0
"""Time to look up one token, a string or an int64, in multiply-adds (60 and 8 ns)."""


@mapped("TfIdfVectorizer")
def _rows(ctx: Context) -> list[Through]:
    """Axis 0 of [rows, tokens]. Refuses one row without that axis."""
    if ctx.input(0).rank != 2:
        raise Decline("its input is one row of tokens, not a matrix with a row per candidate")
    return [Through((0,), (0,))]


@rule("TfIdfVectorizer", splits=True)
def tfidf(ctx: Context) -> Sequence[Value | None]:
    """The sum of the counts of a Cat's parts. Rows as a whole, and a note with the reason, where the identity does not
    hold or saves less than it costs. Refuses one row without the axis of rows.
    """
    rows = _rows(ctx)
    x, axis = single(ctx.b, ctx.input(0), 1)
    body = coalesce(ctx.b, x.body) if isinstance(x.body, Cat) else x.body
    if not isinstance(body, Cat) or body.axis is not axis:
        return run(ctx, rows)
    why = _one_piece(ctx, body)
    if why:
        ctx.b.notes.append(why)
        return run(ctx, rows)
    counts = []
    for part in body.parts:
        tokens = ctx.value([x.known[0], (part.axis,) if part.axis else ()], part.body, x.dtype)
        (count,) = run(ctx.on(ctx.node, [tokens]), rows)
        assert count is not None
        counts.append(count)
    bodies, groups = align(ctx.b, counts)
    order = [a for group in groups for a in group]
    return [ctx.value(groups, add(ctx.b, bodies, order), counts[0].dtype)]


def _one_piece(ctx: Context, cat: Cat) -> str:
    """Why the parts are not counted one by one; "" if they are."""
    if ctx.attr("max_gram_length", 1) > 1:
        return "its n-grams of several tokens may lie across user and item tokens"
    if ctx.attr("mode", "TF") in ("IDF", b"IDF"):
        return "in mode IDF the results of parts do not add up"
    time, columns = ctx.b.time, max(ctx.attr("ngram_indexes", [0])) + 1
    kinds = [axes_of(part.body) - {part.axis} for part in cat.parts]
    full = time.volume(frozenset().union(*kinds))
    saved = sum(len(p.positions) * (full - time.volume(k)) for p, k in zip(cat.parts, kinds, strict=True))
    saved *= WORD if ctx.input(0).dtype == TensorProto.STRING else NUMBER
    if saved <= (len(cat.parts) - 1) * (2 * time.node + columns * time.spread * full):
        return "counting the user's tokens once would save less than adding the counts costs"
    return ""
