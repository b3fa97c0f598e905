"""What leads to each leaf of a tree: numbers of several features together.

Drawn apart, features get to few of the leaves of a deep tree.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from mari_onnx.parity.domains.reactions import attributes, by_name
from mari_onnx.parity.domains.texts import Joint

if TYPE_CHECKING:
    from mari_onnx.parity.domains.trace import Trace

# Leaves of more trees are not looked for.
_LEAVES = 20_000
# Splits that go left below (or at) their number, and those that go left above.
_BELOW, _ABOVE = ("BRANCH_LEQ", "BRANCH_LT"), ("BRANCH_GTE", "BRANCH_GT")


def leaves(trace: Trace) -> Iterator[Joint]:
    """For each leaf of each tree whose features are computed in a straight line from one input element each."""
    left = _LEAVES
    for node in trace.parts.nodes:
        own = attributes(node) if node.op_type.startswith("TreeEnsemble") else {}
        own = by_name(own) if "tree_roots" in own else own
        curve = trace.curves.get(node.input[0]) if own.get("nodes_treeids") else None
        if curve is None or not curve.origin.size:
            continue
        shape = trace.shape_of(node.input[0])
        columns = np.arange(curve.origin.size).reshape(-1, shape[-1])[0] if shape else np.zeros(1, int)
        for box in _boxes(own):
            parts, bounds = [], []
            for feature, (low, high) in box.items():
                element = int(columns[feature])
                origin, slope, base = int(curve.origin[element]), curve.slope[element], curve.base[element]
                if origin < 0 or np.isnan(slope) or trace.kinds[origin] not in "iuf":
                    continue
                number = (inside(low, high) - base) / slope
                parts.append((*trace.owner(origin), float(np.ceil(number) if trace.kinds[origin] != "f" else number)))
                ends = sorted(((low - base) / slope, (high - base) / slope))
                bounds.append((float(ends[0]), float(ends[1])))
            left -= 1
            if left < 0:
                return
            if len(parts) > 1:
                yield Joint(tuple(parts), tuple(bounds))


def _boxes(own: dict[str, Any]) -> Iterator[dict[int, tuple[float, float]]]:
    """Bounds of each feature on the way to each leaf that can be reached."""
    keys = list(zip(own["nodes_treeids"], own["nodes_nodeids"], strict=True))
    place = {key: at for at, key in enumerate(keys)}
    inner = [mode != "LEAF" for mode in own["nodes_modes"]]
    to = [(place.get((t, own["nodes_truenodeids"][k]), k), place.get((t, own["nodes_falsenodeids"][k]), k))
          for k, (t, _) in enumerate(keys)]  # fmt: skip
    below = {each for k, both in enumerate(to) if inner[k] for each in both}
    for root in (k for k in range(len(keys)) if k not in below):
        stack: list[tuple[int, dict[int, tuple[float, float]]]] = [(root, {})]
        while stack:
            at, box = stack.pop()
            if not inner[at]:
                yield box
                continue
            feature, mode, number = (own[f"nodes_{key}"][at] for key in ("featureids", "modes", "values"))
            low, high = box.get(feature, (-np.inf, np.inf))
            ways = [box, box]
            if mode in _BELOW + _ABOVE:
                under, over = {**box, feature: (low, min(high, number))}, {**box, feature: (max(low, number), high)}
                ways = [under, over] if mode in _BELOW else [over, under]
            for child, way in zip(to[at], ways, strict=True):
                if all(a < b for a, b in way.values()):
                    stack.append((child, way))


def inside(low: float, high: float) -> float:
    """A number between two bounds."""
    if np.isfinite(low) and np.isfinite(high):
        return (low + high) / 2
    if np.isfinite(low):
        return low + max(abs(low) / 4, 0.5)
    return high - max(abs(high) / 4, 0.5)
