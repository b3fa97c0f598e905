"""Every operator of the ONNX standard between user and item tensors: right, or refused with a reason.

The node tests that the onnx package ships are taken apart; each becomes models in which the tensors are the user's, the
item's, or concatenations of both. ``python -m tests.operators`` runs all of them and writes docs/operators.md.
"""

from __future__ import annotations

import argparse
import importlib
import pkgutil
import sys
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnx.backend.test.case import node as standard
from onnx.reference import ReferenceEvaluator

from mari_onnx.engine import Options, Rewrite, rewrite
from mari_onnx.engine.ir.nodes import RANDOM
from mari_onnx.model.nodes import is_standard
from mari_onnx.sides.resolve import Sides
from tests.engine.checks import unweighed
from tests.fuzz.oracle import Fault, strictly

HEAVY = ("averagepool", "lppool", "maxpool")
"""Modules of node tests that take ten seconds each to import; pools are among the extra cases too."""
ROWS = 3
OLDEST, NEWEST = 13, 26
"""Opsets of the models, where the operator allows it."""
UNCHANGED = {"Identity", "Cast", "CastLike", "Reshape", "Transpose", "Shape", "Size", "Equal"}
"""Operators that only learnt more types."""
RULES_THAT_MOVE = ("structure", "shape", "index")


@dataclass
class Sample:
    """A node with example inputs; None for an input that is left out, lists for sequences."""

    name: str
    node: onnx.NodeProto
    infos: list[onnx.ValueInfoProto | None]
    inputs: list[Any]
    opsets: list[onnx.OperatorSetIdProto]


@dataclass
class Met:
    """What became of one operator."""

    runs: int = 0
    layouts: Counter[str] = field(default_factory=Counter)
    rules: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)


# ---- samples -------------------------------------------------------------------------------------------------------


def samples(heavy: bool = False) -> Iterator[Sample]:
    """One for each node test of a single node."""
    for module in pkgutil.iter_modules(standard.__path__):
        if heavy or module.name not in HEAVY:
            with np.errstate(all="ignore"), warnings.catch_warnings(action="ignore"):
                importlib.import_module(f"{standard.__name__}.{module.name}")
    for case in standard._NodeTestCases:
        model = case.model
        if len(model.graph.node) != 1 or model.functions or not case.data_sets:
            continue
        node = model.graph.node[0]
        given = {
            i.name: numpy_helper.to_array(x) if isinstance(x, TensorProto) else _array(x)
            for i, x in zip(model.graph.input, case.data_sets[0][0], strict=False)
        }
        infos = {i.name: i for i in model.graph.input}
        yield Sample(
            case.name, node, [infos.get(i) for i in node.input], [given.get(i) for i in node.input],
            [_opset(node.op_type, o) for o in model.opset_import],
        )  # fmt: skip
    yield from extra()


def _array(value: Any) -> Any:
    """Scalars of numpy as arrays; strings, sequences and None as they are."""
    return np.asarray(value) if isinstance(value, np.generic) else value


def _opset(op: str, stated: onnx.OperatorSetIdProto) -> onnx.OperatorSetIdProto:
    """One that is rewritten and that onnxruntime runs, where the operator is the same there."""
    version = min(max(stated.version, OLDEST), NEWEST)
    if not is_standard(stated) or version == stated.version or not onnx.defs.has(op):
        return stated
    try:
        since = [onnx.defs.get_schema(op, v).since_version for v in (version, stated.version)]
    except onnx.defs.SchemaError:
        return stated
    newer = since[0] > since[1] and op not in UNCHANGED
    return stated if newer else helper.make_opsetid("", version)


def extra() -> Iterator[Sample]:
    """Operators for which onnx ships no test of a single node, and pools."""
    rng = np.random.default_rng(0)
    image = rng.standard_normal((2, 3, 6, 6)).astype(np.float32)
    table = rng.standard_normal((3, 4)).astype(np.float32)

    def one(op: str, *inputs: Any, outputs: int = 1, opset: int = 21, **attrs: Any) -> Sample:
        names = [f"i{k}" for k in range(len(inputs))]
        node = helper.make_node(op, names, [f"o{k}" for k in range(outputs)], **attrs)
        infos = [_info(n, x) for n, x in zip(names, inputs, strict=True)]
        return Sample(f"extra_{op.lower()}", node, infos, list(inputs), [helper.make_opsetid("", opset)])

    yield one("MaxPool", image, kernel_shape=[2, 2], strides=[2, 2])
    yield one("AveragePool", image, kernel_shape=[2, 2])
    yield one("LpPool", image, kernel_shape=[2, 2])
    yield one("GlobalLpPool", image)
    yield one("RandomNormalLike", table)
    yield one("RandomUniformLike", table)
    yield one("Multinomial", np.abs(table), sample_size=2)
    yield one("RandomNormal", shape=[3, 4])
    yield one("RandomUniform", shape=[3, 4])
    yield one("SequenceConstruct", table, table)
    yield one("SequenceEmpty")
    yield one("SequenceAt", [table, table], np.array(1))
    yield one("SequenceErase", [table, table])
    yield one("SequenceLength", [table, table])
    yield one("ConcatFromSequence", [table, table], axis=1)
    yield one("MaxRoiPool", image, np.array([[0, 0, 0, 3, 3]], np.float32), pooled_shape=[2, 2])


def _info(name: str, value: Any) -> onnx.ValueInfoProto:
    if isinstance(value, list):
        kind = helper.np_dtype_to_tensor_dtype(value[0].dtype)
        return helper.make_tensor_sequence_value_info(name, kind, value[0].shape)
    return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(value.dtype), value.shape)


# ---- layouts -------------------------------------------------------------------------------------------------------

Layout = dict[int, str]
"""What each input of the node is: user, item, cat (user columns beside item columns), sum, weight."""


def layouts(sample: Sample) -> Iterator[tuple[str, Layout]]:
    """User alone, item alone, mixed in several ways. Only tensors with a first dimension are anybody's."""
    able = [
        k for k, x in enumerate(sample.inputs) if isinstance(x, np.ndarray) and x.ndim > 0 and x.dtype.kind in "fiub"
    ]
    rest = dict.fromkeys(range(len(sample.inputs)), "weight")
    if not able:
        yield "none", rest
        return
    first = able[0]
    for side in ("user", "item", "cat", "sum"):
        yield f"{side} first", rest | {first: side}
    if len(able) > 1:
        for side in ("user", "cat"):
            yield f"{side} all", rest | dict.fromkeys(able, side)
        yield "user, item", rest | {k: "item" if n else "user" for n, k in enumerate(able)}
        yield "item, user", rest | {k: "user" if n else "item" for n, k in enumerate(able)}
        yield "weight, user", rest | {k: "user" if n else "weight" for n, k in enumerate(able)}
        yield "cat, user", rest | {k: "user" if n else "cat" for n, k in enumerate(able)}


@dataclass
class Built:
    model: onnx.ModelProto
    sides: Sides
    feeds: dict[str, Any]
    once: dict[str, Any]


def build(sample: Sample, layout: Layout, more: str) -> Built | None:
    """The model; None where the layout does not fit.

    more: "as is" (axis 0 of the tensor is the candidate axis), "rows" (more of them), "added" (an axis before it).
    """
    inputs: list[onnx.ValueInfoProto] = []
    weights: list[onnx.TensorProto] = []
    nodes: list[onnx.NodeProto] = []
    sides: dict[str, str] = {}
    feeds: dict[str, Any] = {}
    once: dict[str, Any] = {}
    node = onnx.NodeProto()
    node.CopyFrom(sample.node)
    node.name = "tested"
    rows: int | None = None
    rng = np.random.default_rng(1)

    def enter(name: str, array: np.ndarray, side: str) -> None:
        kind = helper.np_dtype_to_tensor_dtype(array.dtype)
        inputs.append(helper.make_tensor_value_info(name, kind, ["N", *array.shape[1:]]))
        sides[name] = side
        if side == "user":
            array = np.repeat(array[:1], array.shape[0], axis=0)
        feeds[name], once[name] = array, array[:1] if side == "user" else array

    for k, name in enumerate(node.input):
        value, how = sample.inputs[k], layout[k]
        if not name:
            continue
        if value is None or not isinstance(value, np.ndarray) or value.dtype.kind not in "fiub" or how == "weight":
            info = sample.infos[k]
            if info is None or value is None:
                return None
            fresh = f"{name}_{k}"
            node.input[k] = fresh
            if isinstance(value, np.ndarray) and value.dtype.kind != "O" and value.dtype.kind != "U":
                weights.append(numpy_helper.from_array(np.ascontiguousarray(value), fresh))
            else:
                kept = onnx.ValueInfoProto()
                kept.CopyFrom(info)
                kept.name = fresh
                inputs.append(kept)
                feeds[fresh] = once[fresh] = value
            continue
        if more == "added":
            value = np.stack([value] * ROWS)
        elif more == "rows":
            value = np.repeat(value, ROWS, axis=0)
        if value.dtype.kind == "f" and more != "as is":
            value = (value + 0.05 * np.abs(value).mean() * rng.random(value.shape)).astype(value.dtype)
        if not value.shape[0]:
            return None  # no candidates
        if rows is None:
            rows = value.shape[0]
        elif rows != value.shape[0]:
            return None
        fresh = f"{name}_{k}"
        node.input[k] = fresh
        if how in ("user", "item"):
            enter(fresh, value, how)
        elif how == "cat":
            axis = next((a for a in range(value.ndim - 1, 0, -1) if value.shape[a] > 1), None)
            if axis is None:
                return None
            a, b = np.split(value, [value.shape[axis] // 2], axis=axis)
            enter(f"{fresh}_u", a, "user")
            enter(f"{fresh}_x", b, "item")
            nodes.append(helper.make_node("Concat", [f"{fresh}_u", f"{fresh}_x"], [fresh], axis=axis))
        else:
            if value.dtype.kind != "f":
                return None
            enter(f"{fresh}_u", (value / 2).astype(value.dtype), "user")
            enter(f"{fresh}_x", (value / 2).astype(value.dtype), "item")
            nodes.append(helper.make_node("Add", [f"{fresh}_u", f"{fresh}_x"], [fresh]))
    if "user" in sides.values() and "item" not in sides.values():
        # something must say how many candidates there are
        enter("rows", np.ones((rows or 1, 1), np.float32), "item")
    nodes.append(node)
    outputs = [onnx.ValueInfoProto(name=o) for o in node.output if o]
    opsets = list(sample.opsets)
    if not any(is_standard(o) for o in opsets):
        opsets.append(helper.make_opsetid("", 21))
    graph = helper.make_graph(nodes, "swept", inputs, outputs, weights)
    return Built(helper.make_model(graph, opset_imports=opsets, ir_version=10), Sides(sides), feeds, once)


def run(model: onnx.ModelProto, feeds: dict[str, Any]) -> list[Any] | None:
    """By onnxruntime where it has the operator, else by onnx's evaluator, which takes invalid models too.

    None where the model does not run.
    """
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    try:
        made = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        if not any(word in str(error) for word in ("NOT_IMPLEMENTED", "opset", "No Op registered")):
            return None
    else:
        try:
            return list(made.run(None, feeds))
        except Exception:
            return None
    with np.errstate(all="ignore"):
        try:
            return list(ReferenceEvaluator(model).run(None, feeds))
        except Exception:
            return None


def settle(built: Built, want: list[Any]) -> None:
    """Declares the outputs as the source gives them; types of less than 8 bits or of float8 as onnx infers them."""
    inferred = {o.name: o for o in onnx.shape_inference.infer_shapes(built.model).graph.output}
    for info, value in zip(built.model.graph.output, want, strict=True):
        if isinstance(value, list) or value is None:
            elem = helper.np_dtype_to_tensor_dtype(np.asarray(value[0]).dtype) if value else TensorProto.FLOAT
            info.type.CopyFrom(helper.make_sequence_type_proto(helper.make_tensor_type_proto(elem, None)))
            continue
        array = np.asarray(value)
        kind = inferred[info.name].type.tensor_type.elem_type
        if not kind:
            strings = array.dtype.kind in "OUS"
            kind = TensorProto.STRING if strings else helper.np_dtype_to_tensor_dtype(array.dtype)
        info.type.CopyFrom(helper.make_tensor_type_proto(kind, [None] * array.ndim))


# ---- judging -------------------------------------------------------------------------------------------------------


def judge(built: Built, want: list[Any], op: str) -> Rewrite:
    """Raises `Fault`."""
    try:
        with strictly(True), unweighed():
            result = rewrite(built.model, built.sides, Options())
    except Exception as error:
        raise Fault("trip", f"{type(error).__name__}: {str(error)[:200]}") from error
    if not result.changed:
        return result
    try:
        onnx.checker.check_model(result.model)
    except Exception as error:
        try:
            onnx.checker.check_model(built.model)
        except Exception:
            pass
        else:
            raise Fault("invalid", str(error)[:200]) from error
    feeds = {i.name: built.once[i.name] for i in result.model.graph.input}
    have = run(result.model, feeds)
    if have is None:
        raise Fault("wrong", "the new model does not run")
    if op in RANDOM:
        return result
    for a, b in zip(want, have, strict=True):
        bad = _differs(a, b)
        if bad:
            raise Fault("wrong", bad)
    return result


def _differs(a: Any, b: Any) -> str | None:
    if isinstance(a, list) or a is None:
        if (a is None) != (b is None) or (a is not None and len(a) != len(b)):
            return "another length of a sequence"
        return next((bad for x, y in zip(a or [], b or [], strict=True) if (bad := _differs(x, y))), None)
    x, y = np.asarray(a), np.asarray(b)
    if x.shape != y.shape:
        return f"shape {y.shape} is not {x.shape}"
    if x.dtype.kind in "OUS" or x.dtype.kind in "biu":
        return None if np.array_equal(x, y) else "other integers or strings"
    x, y = x.astype(np.complex128), y.astype(np.complex128)
    kind = np.asarray(a).dtype.name
    loose = {"float16": 2e-3, "bfloat16": 2e-2, "float64": 1e-8}.get(kind, 1e-4 if kind == "float32" else 0.3)
    finite = np.isfinite(x)
    if not np.array_equal(finite, np.isfinite(y)) or not np.array_equal(x[~finite], y[~finite], equal_nan=True):
        return "not finite in other places"
    off = np.abs(x[finite] - y[finite]).max(initial=0)
    return None if off <= loose * max(1.0, float(np.abs(x[finite]).max(initial=0))) else f"off by {off:.3g}"


def sweep(given: Sequence[Sample], seen: dict[str, Met], report: Callable[[str, Fault], None]) -> None:
    """Every layout of every sample that the source itself runs."""
    for sample in given:
        op = sample.node.op_type
        met = seen[f"{sample.node.domain}.{op}" if not is_standard(sample.node) else op]
        for name, layout in layouts(sample):
            for more in ("as is", "rows", "added"):
                built = build(sample, layout, more)
                if built is None:
                    continue
                want = run(built.model, built.feeds)
                if want is None:
                    continue
                settle(built, want)
                met.runs += 1
                try:
                    result = judge(built, want, op)
                except Fault as fault:
                    report(f"{sample.name}, {name}, {more}", fault)
                    continue
                node = next((r for r in result.nodes if r.name == "tested"), None)
                if node is not None:
                    side = name.split(",")[0].split(" ")[0]
                    literal = node.reason is not None and "nothing shows that the dimensions" in node.reason
                    if node.rule == "default" and node.action == "lifted":
                        node.action = "kept"  # its shape is not known to the engine
                    if not literal:  # the test's own weights have as many rows
                        met.layouts[f"{side}: {node.action}"] += 1
                        met.rules[node.rule] += 1
                    if node.reason and not literal:
                        met.reasons[node.reason] += 1
                break


# ---- the table -----------------------------------------------------------------------------------------------------

HEAD = """# Operators

What the engine does with each operator of the ONNX standard. Written by `python -m tests.operators`: every node test
that the onnx package ships is placed between user and item tensors, rewritten and run; **{runs:,} models of {ops}
operators**, each equal to its source or left as it was.

| word | meaning |
|---|---|
| lifted | runs once per request if its inputs are the user's |
| split | if an input is a concatenation of user and item parts, the user's part runs once per request |
| passes through | moves elements, computes nothing: regroups axes or picks positions of parts that stay apart |
| barrier | is copied as it is, and sees the N rows that it sees in the source |

An operator that is not in the list (a custom one, or one of another domain) is a barrier. "In some forms" means that it
depends on the attributes, or on which input is the user's.

| operator | | why not more |
|---|---|---|
"""


def verdict(met: Met) -> str:
    if not met.runs:
        return "not run"
    user = any(met.layouts[f"{s}: {a}"] for s in ("user", "weight", "none") for a in ("lifted", "split", "folded"))
    parts = met.layouts["cat: split"] + met.layouts["cat: lifted"]
    if not user and not parts:
        return "barrier" if met.reasons or not met.rules else "nothing to lift"
    moves = sum(met.rules[r] for r in RULES_THAT_MOVE) > sum(
        n for r, n in met.rules.items() if r not in (*RULES_THAT_MOVE, "default")
    )
    text = "passes through" if moves else "lifted, split" if parts else "lifted"
    return text + (" in some forms" if met.layouts["user: barrier"] and met.reasons else "")


def table(seen: dict[str, Met]) -> str:
    lines = [HEAD.format(runs=sum(m.runs for m in seen.values()), ops=sum(1 for m in seen.values() if m.runs))]
    for op, met in sorted(seen.items()):
        what = verdict(met)
        reason = ""
        if met.reasons and ("barrier" in what or "some" in what or "split" not in what):
            reason = met.reasons.most_common(1)[0][0]
        lines.append(f"| {op} | {what} | {reason.replace('|', '/')} |\n")
    return "".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", type=Path, default=Path("docs/operators.md"))
    parser.add_argument("--only", default=None, help="one operator; nothing is written")
    args = parser.parse_args()
    seen: dict[str, Met] = defaultdict(Met)
    faults: list[str] = []

    def report(where: str, fault: Fault) -> None:
        faults.append(where)
        print(f"{where}: {fault}", flush=True)

    sweep([s for s in samples(heavy=True) if args.only in (None, s.node.op_type)], seen, report)
    print(f"{sum(m.runs for m in seen.values())} models, {len(seen)} operators, {len(faults)} faults")
    if args.only is None:
        args.write.write_text(table(seen))
    else:
        print(table(seen).splitlines()[-1])
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
