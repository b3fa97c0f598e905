"""8-bit weights for what is computed once per request: a product of one row takes as long as its weights are read.

In: an output of `optimize`. Out: the same with `MatMulNBits` (com.microsoft, by onnxruntime's own quantizer: 8 bits,
blocks of 128, activations of 8 bits) where a product was timed to be faster so. The result is not equal to the source:
`mari_onnx.parity.loss`.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

from mari_onnx import runtime
from mari_onnx.engine.cost.time_model import TimeModel
from mari_onnx.model.dims import Size
from mari_onnx.model.nodes import all_names, attribute, free_name, is_standard, reads
from mari_onnx.model.ops import MICROSOFT, Fact, row
from mari_onnx.model.tensors import array
from mari_onnx.timing.clock import clock_for, interleaved

if TYPE_CHECKING:
    from collections.abc import Sequence

BLOCK = 128
"""Weights of a column that share a scale."""
ROWS = 8
"""Rows up to which a product is looked at: beyond, 8-bit weights were never faster."""
WEIGHTS = 1 << 14
"""Weights from which on a product is looked at."""
FASTER = 1.1
"""How many times faster a product has to be."""
SECONDS = 0.05
"""Spent on timing each product."""


@dataclass(frozen=True)
class Product:
    """One product with 8-bit weights. shape: of the weights. speedup: of the product alone, by the clock."""

    node: str
    shape: tuple[int, int]
    speedup: float

    def to_dict(self) -> dict[str, Any]:
        """The form of the report."""
        return {**asdict(self), "shape": list(self.shape), "speedup": round(self.speedup, 2)}


def with_8_bits(
    model: onnx.ModelProto, shapes: Mapping[str, tuple[Size, ...]], n: int, threads: int = 1
) -> tuple[onnx.ModelProto, list[Product]]:
    """A copy of the model, and the products that have 8-bit weights in it; none where nothing is faster.

    Args:
        shapes: of the model's tensors. n: the number of candidates, at which a product for each has too many rows.
        threads: of onnxruntime.
    """
    made = onnx.ModelProto()
    made.CopyFrom(model)
    given = {i.name for i in made.graph.input}
    weights = {t.name: t for t in made.graph.initializer if t.name not in given}
    nodes, found = list[NodeProto](), list[Product]()
    taken = all_names(made.graph)
    done: dict[str, list[TensorProto]] = {}
    for node in made.graph.node:
        rows = _rows(node, shapes, n)
        matrix = _weights(node, weights) if rows is not None else None
        if rows is None or matrix is None:
            nodes.append(node)
            continue
        coded = quantized(matrix)
        speedup = _speedup(matrix, coded, rows, threads)
        if speedup < FASTER:
            nodes.append(node)
            continue
        key = f"{node.input[1]}/{bool(attribute(node, 'transB', 0))}"
        if key not in done:
            done[key] = [_named(t, node.input[1], taken) for t in coded.tensors]
            made.graph.initializer.extend(done[key])
        nodes += _written(node, coded, [t.name for t in done[key]], taken)
        found.append(Product(node.name or node.output[0], (matrix.shape[0], matrix.shape[1]), speedup))
    if not found:
        return model, []
    del made.graph.node[:]
    made.graph.node.extend(nodes)
    outputs = {o.name for o in made.graph.output}
    read = {name for node in made.graph.node for name in reads(node)} | given | outputs
    kept = [t for t in made.graph.initializer if t.name in read]
    del made.graph.initializer[:]
    made.graph.initializer.extend(kept)
    if all(each.domain != MICROSOFT for each in made.opset_import):
        made.opset_import.append(helper.make_opsetid(MICROSOFT, 1))
    return made, found


@dataclass(frozen=True)
class Coded:
    """A MatMulNBits without names of its own. tensors: packed weights, scales, zero points."""

    node: NodeProto
    tensors: Sequence[TensorProto]


def quantized(matrix: np.ndarray) -> Coded:
    """Weights [K, H] of float32 as onnxruntime's quantizer packs them."""
    level, handlers = logging.getLogger().level, list(logging.getLogger().handlers)
    from onnxruntime.quantization.matmul_nbits_quantizer import DefaultWeightOnlyQuantConfig, MatMulNBitsQuantizer

    logging.getLogger().setLevel(level)  # the import asks for messages of any kind
    logging.getLogger().handlers[:] = handlers
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in "xy")
    node = helper.make_node("MatMul", ["x", "w"], ["y"], name="product")
    graph = helper.make_graph([node], "product", [x], [y], [numpy_helper.from_array(matrix, "w")])
    made = MatMulNBitsQuantizer(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8),
        algo_config=DefaultWeightOnlyQuantConfig(block_size=BLOCK, is_symmetric=False, accuracy_level=4, bits=8),
    )
    made.process()
    graph = made.model.model.graph
    (coded,) = graph.node
    assert coded.op_type == "MatMulNBits"
    by_name = {t.name: t for t in graph.initializer}
    return Coded(coded, [by_name[name] for name in coded.input[1:]])


def _rows(node: NodeProto, shapes: Mapping[str, tuple[Size, ...]], n: int) -> int | None:
    """Rows of a product of data and a matrix, where they are few."""
    if Fact.MATMUL not in row(node.op_type).facts or not is_standard(node) or attribute(node, "transA", 0):
        return None
    if attribute(node, "alpha", 1.0) != 1 or attribute(node, "beta", 1.0) != 1:
        return None
    shape = shapes.get(node.input[0])
    if shape is None or len(shape) < 2 or not isinstance(shape[-1], int):
        return None
    rows = int(np.prod([TimeModel(n).length(size) for size in shape[:-1]]))
    return rows if 0 < rows <= ROWS else None


def _weights(node: NodeProto, weights: Mapping[str, TensorProto]) -> np.ndarray | None:
    """The second operand as [K, H], where it is a large constant of float32."""
    proto = weights.get(node.input[1])
    if proto is None or proto.data_type != TensorProto.FLOAT or len(proto.dims) != 2:
        return None
    if int(np.prod(proto.dims)) < WEIGHTS:
        return None
    matrix = array(proto)
    return np.ascontiguousarray(matrix.T if attribute(node, "transB", 0) else matrix)


def _speedup(matrix: np.ndarray, coded: Coded, rows: int, threads: int) -> float:
    """How many times faster the product is with 8 bits."""
    rng = np.random.default_rng(0)
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in "xy")
    plain = helper.make_node("MatMul", ["x", "w"], ["y"])
    sessions = []
    for node, tensors in ((plain, [numpy_helper.from_array(matrix, "w")]), (coded.node, coded.tensors)):
        graph = helper.make_graph([node], "product", [x], [y], list(tensors))
        opsets = [helper.make_opsetid("", 18), helper.make_opsetid(MICROSOFT, 1)]
        sessions.append(runtime.session(helper.make_model(graph, opset_imports=opsets, ir_version=8), threads=threads))
    feed = {"x": rng.standard_normal((rows, matrix.shape[0]), dtype=np.float32)}
    _, clock = clock_for(threads)
    timing = interleaved(
        {"float": lambda _: sessions[0].run(None, feed), "int8": lambda _: sessions[1].run(None, feed)},
        seconds=SECONDS, most=200, clock=clock, threads=threads,
    )  # fmt: skip
    return timing.ratio("float", "int8")


def _named(tensor: TensorProto, base: str, taken: set[str]) -> TensorProto:
    """The tensor under a name that nothing has."""
    copy = TensorProto()
    copy.CopyFrom(tensor)
    copy.name = free_name(f"{base}/{tensor.name.removeprefix('w').strip('_')}", taken)
    return copy


def _written(node: NodeProto, coded: Coded, names: Sequence[str], taken: set[str]) -> list[NodeProto]:
    """The product, and the Add of what a Gemm adds."""
    product = NodeProto()
    product.CopyFrom(coded.node)
    product.name = node.name
    product.input[:] = [node.input[0], *names]
    added = node.input[2] if len(node.input) > 2 else ""
    product.output[:] = [free_name(f"{node.output[0]}/product", taken) if added else node.output[0]]
    if not added:
        return [product]
    return [product, helper.make_node("Add", [product.output[0], added], list(node.output), name=f"{node.name}/Add")]
