"""Element types and shapes of a single node's outputs, by onnx's shape inference, with symbolic dimensions."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import onnx
from onnx import NodeProto, TensorProto, TypeProto, helper, numpy_helper

from mari_onnx.engine.ir.value import Tensor
from mari_onnx.model.dims import Dim, Size, evaluate, symbols
from mari_onnx.model.nodes import attribute, attributes, domain
from mari_onnx.model.ops import Fact, having

PROBE = (31, 37, 41, 43, 47, 53, 59, 61, 67, 71, 73, 79)
DATA_LIMIT = 4096
UNFIT, POOLS = having(Fact.NOT_AFFINE), having(Fact.POOL)

Inferred = list[tuple[int, "tuple[Size | None, ...] | None"]]
Known = Callable[[NodeProto, "Sequence[tuple[Size, ...] | None]", "Sequence[Tensor | None]"], "Inferred | None"]
OTHERS: dict[tuple[str, str], Known] = {}
"""Inference for operators of other domains (`rules/microsoft/shapes.py`); a function returns None for unknown."""


def infer(
    node: NodeProto,
    shapes: Sequence[tuple[Size, ...] | None],
    inputs: Sequence[Tensor | None],
    opsets: dict[str, int],
) -> Inferred:
    """(element type, shape) for each output. An unknown dimension is None, an unknown rank a shape of None.

    onnx infers only with integers and names. A dimension that is computed from symbols (of a Conv over T) is inferred
    at a few sample sizes and fitted as an affine function; one more sample checks the fit. Operators that treat small
    sizes in another way are not fitted: a Slice is cut short by them, and Expand repeats a dimension of 1.
    """
    other = OTHERS.get((domain(node.domain), node.op_type))
    found = other(node, shapes, inputs) if other is not None else None
    if found is not None:
        return found
    found = _run(node, shapes, inputs, opsets, None)
    if found is not None and node.op_type in POOLS:
        found = [(dtype, _pooled(node, shape)) for dtype, shape in found]
    names = sorted({s for shape in shapes if shape is not None for size in shape for s in symbols(size)})
    if found is None and node.op_type == "GroupNormalization":
        return [(t.dtype, shapes[0]) for t in inputs[:1] if t is not None]
    if found is None and any(t is not None and t.dtype == TensorProto.UNDEFINED for t in inputs):
        return _whatever(node, shapes, inputs, opsets)
    if found is None:
        # an operator of onnxruntime's own: not even the type is known
        return [(TensorProto.UNDEFINED, None) for _ in node.output]
    unfit = node.op_type in UNFIT or (node.op_type in POOLS and _doubtful(node))
    if not names or unfit or all(shape is None or None not in shape for _, shape in found):
        return found
    base = {name: PROBE[k % len(PROBE)] + 100 * (k // len(PROBE)) for k, name in enumerate(names)}
    samples = [base] + [{**base, name: base[name] + 12} for name in names]
    samples.append({name: value + 24 + 12 * k for k, (name, value) in enumerate(base.items())})
    runs = [_run(node, shapes, inputs, opsets, sample) for sample in samples]
    out: Inferred = []
    for k, (dtype, shape) in enumerate(found):
        # a sample of sizes may tell less than their symbols: a Split by lengths that only the run knows
        sampled = [run[k][1] for run in runs if run is not None]
        agreed = [sizes for sizes in sampled if shape is not None and sizes is not None and len(sizes) == len(shape)]
        if shape is not None and len(agreed) == len(runs):
            shape = tuple(
                size if size is not None else _fit(names, samples, [sizes[i] for sizes in agreed])
                for i, size in enumerate(shape)
            )
        out.append((dtype, shape))
    return out


def _whatever(
    node: NodeProto,
    shapes: Sequence[tuple[Size, ...] | None],
    inputs: Sequence[Tensor | None],
    opsets: dict[str, int],
) -> Inferred:
    """Types and shapes where the element type of an input is not known: what holds for floats and for integers."""
    kinds = (TensorProto.FLOAT, TensorProto.INT64)
    runs = [found for kind in kinds if (found := _run(node, shapes, inputs, opsets, None, kind)) is not None]
    out: Inferred = []
    for k in range(len(node.output)):
        types, ways = {run[k][0] for run in runs}, {run[k][1] for run in runs}
        dtype = types.pop() if len(runs) == len(kinds) and len(types) == 1 else TensorProto.UNDEFINED
        out.append((dtype, ways.pop() if len(ways) == 1 else None))
    return out


def _doubtful(node: NodeProto) -> set[str]:
    """The case of a pooling in which onnx and onnxruntime differ: a last window in padding ("ceil"), or windows with
    holes under SAME padding ("holes").
    """
    given = attributes(node)
    same = given.get("auto_pad") in ("SAME_UPPER", "SAME_LOWER")
    kernel = given.get("kernel_shape", [])
    ones = [1] * len(kernel)
    dilations, strides = given.get("dilations") or ones, given.get("strides") or ones
    found = {"holes"} if same and any(d != 1 for d in dilations) else set()
    # without padding behind, and windows as long as a step, the last one begins on an element
    within = all((k - 1) * d + 1 >= s for k, d, s in zip(kernel, dilations, strides, strict=True))
    plain = given.get("auto_pad", "NOTSET") in ("NOTSET", "VALID") and not any(given.get("pads", [])[len(kernel) :])
    return found | {"ceil"} if given.get("ceil_mode", 0) and not (within and plain) else found


def _pooled(node: NodeProto, shape: tuple[Size | None, ...] | None) -> tuple[Size | None, ...] | None:
    """The shape of a pooling, with None where onnx and onnxruntime may differ."""
    doubts = _doubtful(node)
    if shape is None or not doubts:
        return shape
    if "holes" in doubts:
        return (*shape[:2], *[None] * len(shape[2:]))
    strides = attribute(node, "strides", [])
    steps = [1, 1, *strides, *[1] * len(shape)]
    return tuple(size if step == 1 else None for size, step in zip(shape, steps, strict=False))


def _fit(names: Sequence[str], samples: Sequence[dict[str, int]], values: Sequence[Size | None]) -> Size | None:
    """An affine function of the symbols that has these values at the samples; None where there is none."""
    if any(not isinstance(v, int) for v in values):
        return None
    total: Size = values[0]  # type: ignore[assignment]
    for name, value in zip(names, values[1:], strict=False):
        slope, rest = divmod(value - values[0], 12)  # type: ignore[operator]
        if rest:
            return None
        total = total + (Dim.symbol(name) - samples[0][name]) * slope
    return total if evaluate(total, samples[-1]) == values[-1] else None


def _run(
    node: NodeProto,
    shapes: Sequence[tuple[Size, ...] | None],
    inputs: Sequence[Tensor | None],
    opsets: dict[str, int],
    sample: dict[str, int] | None,
    unknown: int = TensorProto.UNDEFINED,
) -> Inferred | None:
    """None where it fails. unknown: the element type to take where none is known."""
    owner = domain(node.domain)
    try:
        schema = onnx.defs.get_schema(node.op_type, opsets.get(owner, 1), owner)
        types, data, params = {}, {}, {}
        plain = NodeProto()
        plain.CopyFrom(node)
        for i, (shape, tensor) in enumerate(zip(shapes, inputs, strict=True)):
            if tensor is None:
                continue
            name = f"i{i}"
            plain.input[i] = name
            dims: list[int | str] | None = None
            if shape is not None:
                dims = []
                for size in shape:
                    if sample is not None:
                        dims.append(evaluate(size, sample))
                    elif isinstance(size, Dim):
                        params[f"<{size}>"] = size
                        dims.append(f"<{size}>")
                    else:
                        dims.append(size)
            types[name] = helper.make_tensor_type_proto(tensor.dtype or unknown, dims)
            if tensor.const and tensor.array.size <= DATA_LIMIT:
                data[name] = numpy_helper.from_array(tensor.array, name)
        imports = [helper.make_opsetid(d, v) for d, v in opsets.items()]
        result = onnx.shape_inference.infer_node_outputs(schema, plain, types, data, opset_imports=imports)
    except Exception:  # no schema, or inference that this operator does not have
        return None
    out: Inferred = []
    for name in node.output:
        kind = result.get(name)
        out.append(_type(kind, params) if kind is not None and name else (TensorProto.FLOAT, None))
    return out


def _type(kind: TypeProto, params: dict[str, Dim]) -> tuple[int, tuple[Size | None, ...] | None]:
    """Element type and shape of an inferred type; names of dimensions become symbols."""
    if not kind.HasField("tensor_type"):
        return TensorProto.UNDEFINED, None
    tensor = kind.tensor_type
    if not tensor.HasField("shape"):
        return tensor.elem_type, None
    sizes: list[Size | None] = []
    for dim in tensor.shape.dim:
        if dim.HasField("dim_value"):
            sizes.append(dim.dim_value)
        else:
            sizes.append(params.get(dim.dim_param))
    return tensor.elem_type, tuple(sizes)
