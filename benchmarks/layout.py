"""Neat against fragmented feature orders, and the first layer against its candidate part alone.

User width 1024, item width 256, hidden 512, then 256, then 1; one thread. Each side comes in k
features of equal width. Neat: all user features, then all item features; fragmented: in turns. The
paper's method loses 38% on the latter. "Packed" takes each side as one input and cuts it up.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping

import numpy as np
import onnx

from benchmarks.graphs import Graph
from benchmarks.side_by_side import Setting, cut, optimized, timed
from benchmarks.tables import Section, Target, milliseconds
from mari_onnx.report.terminal import console
from mari_onnx.sides.resolve import Sides
from mari_onnx.timing.clock import Timing
from mari_onnx.timing.floor import Floor

COMMAND = "python -m benchmarks.layout"
USER, ITEM, HIDDEN = 1024, 256, (512, 256, 1)
FEATURES = (8, 32, 128)
CANDIDATES = (500, 2000)


def network(
    features: int,
    fragmented: bool,
    layers: int = len(HIDDEN),
    packed: bool = False,
    dtype: type = np.float32,
) -> onnx.ModelProto:
    """The first `layers` layers over `features` features a side; `user_0 [N, w]`, `item_0`, ..."""
    g = Graph(dtype=dtype)
    sides = []
    for side, width in (("user", USER), ("item", ITEM)):
        wide = width // features
        if packed:
            whole = g.input(f"{side}_all", ["N", width])
            sizes = g.ints(*[wide] * features)
            sides.append(g.ops("Split", whole, sizes, count=features, axis=1))
        else:
            sides.append([g.input(f"{side}_{i}", ["N", wide]) for i in range(features)])
    users, items = sides
    order = [*users, *items]
    if fragmented:
        order = [piece for pair in zip(users, items, strict=True) for piece in pair]
    y, width = g.op("Concat", *order, axis=1), USER + ITEM
    for index, size in enumerate(HIDDEN[:layers]):
        y, width = g.dense(y, width, size, relu=index < len(HIDDEN) - 1), size
    return g.model("score", ["N", width])


def candidate_part(features: int, dtype: type = np.float32) -> onnx.ModelProto:
    """The first layer without a user, as one would write it: the least that has to be done."""
    g = Graph(dtype=dtype)
    items = [g.input(f"item_{i}", ["N", ITEM // features]) for i in range(features)]
    g.dense(g.op("Concat", *items, axis=1), ITEM, HIDDEN[0])
    return g.model("score", ["N", HIDDEN[0]])


def user_part(features: int, dtype: type = np.float32) -> onnx.ModelProto:
    """The user's row of the first layer: what has to be done besides, once per request."""
    g = Graph(dtype=dtype)
    users = [g.input(f"user_{i}", [1, USER // features]) for i in range(features)]
    g.dense(g.op("Concat", *users, axis=1), USER, HIDDEN[0], relu=False)
    return g.model("score", [1, HIDDEN[0]])


def sides_of(model: onnx.ModelProto) -> Sides:
    """By the names of the inputs."""
    return Sides({value.name: value.name.split("_")[0] for value in model.graph.input})


def by_case(setting: Setting, dtype: type = np.float32, tiny: bool = False) -> list[dict[str, object]]:
    """All that the section shows, as JSON: every N and number of features, and the first layer alone."""
    found: list[dict[str, object]] = []
    for n in CANDIDATES[:1] if tiny else CANDIDATES:
        for features in FEATURES[:1] if tiny else FEATURES:
            timing = _compared(n, features, setting, dtype)
            worst = timing.ratio("ours fragmented", "ours neat")
            case = {"n": n, "features": features, "fragmented_over_neat": worst}
            found.append({**case, **timing.to_dict("source neat")})
        timing = _first_layer(n, setting, dtype)
        found.append({"n": n, "first_layer": True, **timing.to_dict("source")})
    return found


def section(setting: Setting | None = None) -> Section:
    setting = setting or Setting(seconds=2.5, least=20)
    result = Section(
        "Neat against fragmented, and the first layer against its floor",
        f"User width {USER} and item width {ITEM} in k features each, layers "
        f"{'-'.join(map(str, HIDDEN))}, one thread. Neat: user features, then item features; "
        "fragmented: in turns; packed: in turns, cut out of one input a side. The floor is the "
        "optimized model with the user's part fed ready made; that of the first layer alone is the "
        "layer of a model without a user. Medians in ms of one run, ratios "
        "pair by pair.",
        COMMAND,
        ["N, what", "source", "ours", "source / ours", "ours / ours neat", "floor / ours"],
    )
    for n in CANDIDATES:
        for features in FEATURES:
            _compare(result, n, features, setting)
        timing = _first_layer(n, setting)
        candidates, once = timing.median("floor"), timing.median("user")
        bound = candidates / (candidates + once)
        result.notes.append(
            f"N={n}: the candidate part takes {milliseconds(candidates)} ms and the user's own row, which reads "
            f"{USER * HIDDEN[0] * 4 >> 20} MB of weights once, {milliseconds(once)} ms beside it, so no graph that "
            f"computes both gets above {bound:.3f} of the candidate part's speed here."
        )
        _row(result, f"{n}, first layer alone, k = 8", timing, "", "")
        result.targets.append(
            Target.at_least(
                f"N={n}: first layer at least 0.95 of the candidate part's speed",
                timing.ratio("floor", "ours"),
                0.95,
            )
        )
    return result


def _compare(result: Section, n: int, features: int, setting: Setting) -> None:
    timing = _compared(n, features, setting)
    for key in (" neat", " fragmented", " packed"):
        _row(result, f"{n}, k = {features},{key}", timing, key, " neat")
    worst = timing.ratio("ours fragmented", "ours neat")
    name = f"N={n}, k={features}: fragmented at most 1.02 of neat"
    result.targets.append(Target.at_most(name, worst, 1.02))


def _compared(n: int, features: int, setting: Setting, dtype: type = np.float32) -> Timing:
    sources = {
        " neat": network(features, False, dtype=dtype),
        " fragmented": network(features, True, dtype=dtype),
        " packed": network(features, True, packed=True, dtype=dtype),
    }
    return _timed(sources, n, setting, dtype)


def _first_layer(n: int, setting: Setting, dtype: type = np.float32) -> Timing:
    source = {"": network(8, True, layers=1, dtype=dtype)}
    return _timed(source, n, setting, dtype, candidate_part(8, dtype), user_part(8, dtype))


def _timed(
    sources: Mapping[str, onnx.ModelProto],
    n: int,
    setting: Setting,
    dtype: type,
    least: onnx.ModelProto | None = None,
    once: onnx.ModelProto | None = None,
) -> Timing:
    """Each source, ours of it, and the floor, by default of the first; on values of their own."""
    models: dict[str, onnx.ModelProto | Floor] = {}
    for key, source in sources.items():
        sides = sides_of(source)
        result = optimized(source, sides, n, setting.provider)
        models |= {f"source{key}": source, f"ours{key}": result.model}
        if "floor" not in models:
            models["floor"] = least or cut(result, sides)
    if once is not None:
        models["user"] = once
    rng = np.random.default_rng(1)
    user, rows = {}, {}
    for value in (value for source in sources.values() for value in source.graph.input):
        width = value.type.tensor_type.shape.dim[1].dim_value
        side, count = (user, 1) if value.name.startswith("user") else (rows, n)
        side[value.name] = rng.standard_normal((count, width), np.float32).astype(dtype)
    return timed(models, user, rows, setting)[0]


def _row(result: Section, name: str, timing: Timing, key: str, neat: str) -> None:
    ours = f"ours{key}"
    result.rows.append(
        [
            name,
            milliseconds(timing.median(f"source{key}")),
            milliseconds(timing.median(ours)),
            f"{timing.ratio(f'source{key}', ours):.2f}",
            f"{timing.ratio(ours, f'ours{neat}'):.3f}" if key else "",
            f"{timing.ratio('floor', ours):.3f}",
        ]
    )


def main() -> int:
    result = section()
    result.show(console())
    return 0 if result.met else 1


if __name__ == "__main__":
    sys.exit(main())
