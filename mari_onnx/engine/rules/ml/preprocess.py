"""Preprocessing and tree models of ai.onnx.ml, as scikit-learn and tree libraries export them: each row by itself.

    Scaler                  (x - offset) scale            FeatureVectorizer      Concat of its inputs as floats
    Imputer                 Where(x is missing, v, x)     ArrayFeatureExtractor  positions of the last axis
    Binarizer, LabelEncoder element by element            OneHotEncoder          one more axis, of the categories
    Normalizer, SVM*, TreeEnsemble*                       all features of a row together

Linear models are in `linear.py`. A ZipMap makes a sequence of maps; it is copied, and sees N rows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from onnx import NodeProto, TensorProto

from mari_onnx.engine.axes.blockwise import zip_bodies
from mari_onnx.engine.batching import Through, mapped
from mari_onnx.engine.ir.infer import Inferred
from mari_onnx.engine.ir.value import Decline, Leaf, Value
from mari_onnx.engine.rule import Context, lowered, rule
from mari_onnx.engine.rules.elementwise import plain
from mari_onnx.engine.rules.microsoft.fused import differs
from mari_onnx.engine.rules.microsoft.shapes import Shapes, Tensors, dtype_of, first, outputs, shape_of
from mari_onnx.model.dims import Size
from mari_onnx.model.nodes import attribute
from mari_onnx.model.tensors import FROM_32_BITS

ML = "ai.onnx.ml"


# ---- shapes --------------------------------------------------------------------------------------------------------


@shape_of("Scaler", "Normalizer", domain=ML)
def _floats(node: NodeProto, shapes: Shapes, inputs: Tensors) -> Inferred:
    return outputs(node, (TensorProto.FLOAT, first(shapes)))


@shape_of("Binarizer", "Imputer", domain=ML)
def _same(node: NodeProto, shapes: Shapes, inputs: Tensors) -> Inferred:
    return outputs(node, (dtype_of(inputs), first(shapes)))


@shape_of("LabelEncoder", domain=ML)
def _labels(node: NodeProto, shapes: Shapes, inputs: Tensors) -> Inferred | None:
    names = {a.name for a in node.attribute}
    kinds = {"floats": TensorProto.FLOAT, "int64s": TensorProto.INT64, "strings": TensorProto.STRING}
    found = next((kind for name, kind in kinds.items() if f"values_{name}" in names), None)
    if "values_tensor" in names:
        found = attribute(node, "values_tensor").data_type
    if "classes_strings" in names:
        found = TensorProto.INT64 if dtype_of(inputs) == TensorProto.STRING else TensorProto.STRING
    return None if found is None else outputs(node, (found, first(shapes)))


@shape_of("OneHotEncoder", domain=ML)
def _categories(node: NodeProto, shapes: Shapes, inputs: Tensors) -> Inferred:
    count = sum(len(a.ints) + len(a.strings) for a in node.attribute if a.name.startswith("cats"))
    return outputs(node, (TensorProto.FLOAT, (*first(shapes), count)))


@shape_of("ArrayFeatureExtractor", domain=ML)
def _features(node: NodeProto, shapes: Shapes, inputs: Tensors) -> Inferred:
    *rows, count = first(shapes, 1)
    if any(size != 1 for size in rows):
        raise ValueError("positions of several dimensions")
    return outputs(node, (dtype_of(inputs), (*(first(shapes)[:-1] or (1,)), count)))


@shape_of("FeatureVectorizer", domain=ML)
def _vector(node: NodeProto, shapes: Shapes, inputs: Tensors) -> Inferred:
    widths = attribute(node, "inputdimensions", [])
    assert isinstance(widths, list)
    rows = first(shapes)[0] if len(first(shapes)) > 1 else 1
    return outputs(node, (TensorProto.FLOAT, (rows, sum(widths))))


@shape_of("LinearRegressor", "SVMRegressor", "TreeEnsembleRegressor", domain=ML)
def _targets(node: NodeProto, shapes: Shapes, inputs: Tensors) -> Inferred:
    count = attribute(node, "n_targets" if node.op_type.startswith("Tree") else "targets", 1)
    assert isinstance(count, int)
    columns = 1 if node.op_type.startswith("SVM") else count
    return outputs(node, (TensorProto.FLOAT, (_row_count(first(shapes)), columns)))


@shape_of("LinearClassifier", "SVMClassifier", "TreeEnsembleClassifier", domain=ML)
def _classes(node: NodeProto, shapes: Shapes, inputs: Tensors) -> Inferred:
    labels = [a for a in node.attribute if a.name.startswith("classlabels") and (a.ints or a.strings)]
    (given,) = labels
    count = len(given.ints) or len(given.strings)
    columns: Size | None = max(count, 2)
    if node.op_type == "SVMClassifier" and count > 2 and not attribute(node, "prob_a"):
        columns = count * (count - 1) // 2 if attribute(node, "vectors_per_class") else count
    kind = TensorProto.INT64 if given.ints else TensorProto.STRING
    rows = _row_count(first(shapes))
    return outputs(node, (kind, (rows,)), (TensorProto.FLOAT, (rows, columns)))


def _row_count(shape: tuple[Size, ...]) -> Size:
    if len(shape) != 2:
        raise ValueError("a single row")
    return shape[0]


# ---- by rows -------------------------------------------------------------------------------------------------------


@mapped(
    "Normalizer", "SVMRegressor", "SVMClassifier", "TreeEnsembleRegressor", "TreeEnsembleClassifier", domain=ML
)
def _by_rows(ctx: Context) -> list[Through]:
    """Axis 0 of a matrix, the scores' and the labels'; refuses a single row."""
    return rows(ctx)


def rows(ctx: Context) -> list[Through]:
    """Axis 0 of a matrix: each row by itself. Refuses a single row without that axis."""
    if ctx.input(0).rank != 2:
        raise Decline("the input is a single row without a batch axis")
    return [Through((0,), (0,) * len(ctx.node.output))]


@mapped("OneHotEncoder", domain=ML)
def _one_hot(ctx: Context) -> list[Through]:
    """All axes; the categories are behind them."""
    return [Through((a,), (a,)) for a in range(ctx.input(0).rank)]


# ---- element by element --------------------------------------------------------------------------------------------


@rule("Binarizer", domain=ML)
def binarizer(ctx: Context) -> Sequence[Value | None]:
    """Element-wise."""
    return plain(ctx)


@rule("LabelEncoder", domain=ML)
def label_encoder(ctx: Context) -> list[Value]:
    """Element-wise, to another type. Refuses a type that is not known."""
    x = ctx.input(0)
    kinds: list[int] = []

    def visit(leaves: list[Leaf]) -> Leaf:
        tensor = leaves[0].tensor
        (kind, shape), *_ = ctx.infer([tensor.shape], [tensor])
        if shape is None:
            raise Decline("the element type of the labels is not given")
        kinds.append(kind)
        return Leaf(ctx.b.copy(ctx.node, [tensor], [kind], [tensor.shape])[0], leaves[0].axes)

    body = zip_bodies(ctx.b, [x.body], visit)
    return [ctx.value(x.known, body, kinds[0])]


@rule("Scaler", domain=ML)
def scaler(ctx: Context) -> Sequence[Value | None]:
    """(x - offset) scale, each one number or one for each column of a matrix; in x's float type, then as float32.

    Refuses offsets and scales of unequal number.
    """
    x = ctx.input(0)
    if not differs(x):
        return ctx.write_out()
    offset, scale = ([float(v) for v in ctx.attr(name, [])] for name in ("offset", "scale"))
    if len(offset) != len(scale):
        raise Decline("the numbers of offsets and scales differ")
    _fits(ctx, x, offset)
    with lowered(ctx) as step:
        wide = TensorProto.DOUBLE if x.dtype == TensorProto.DOUBLE else TensorProto.FLOAT
        y = step("Cast", x, to=wide)
        if any(offset):
            y = step("Sub", y, step.const(_one(offset, np.float32), wide))
        if any(s != 1 for s in scale):
            y = step("Mul", y, step.const(_one(scale, np.float32), wide))
        return [step("Cast", y, to=TensorProto.FLOAT)]


@rule("Imputer", domain=ML)
def imputer(ctx: Context) -> Sequence[Value | None]:
    """Where(x is NaN, or equals the number that marks missing values, v, x), with v as for the Scaler."""
    x = ctx.input(0)
    if not differs(x):
        return ctx.write_out()
    floats = x.dtype in FROM_32_BITS
    values = list(ctx.attr("imputed_value_floats" if floats else "imputed_value_int64s", []))
    missing = ctx.attr("replaced_value_float" if floats else "replaced_value_int64", 0)
    _fits(ctx, x, values)
    with lowered(ctx) as step:
        nan = isinstance(missing, float) and math.isnan(missing)
        gone = step("IsNaN", x) if nan else step("Equal", x, step.const(missing, x.dtype))
        return [step("Where", gone, step.const(_one(values, np.float32 if floats else np.int64), x.dtype), x)]


def _fits(ctx: Context, x: Value, values: Sequence[float]) -> None:
    if len(values) != 1 and (x.rank != 2 or not ctx.b.same(x.shape[1], len(values))):
        raise Decline("there is not one number per column")


def _one(values: Sequence[float], kind: type) -> np.ndarray:
    """The numbers as the attribute holds them; equal ones as one."""
    array: np.ndarray = np.asarray(values, kind)
    return array[0] if len(set(array.tolist())) == 1 else array


# ---- positions -----------------------------------------------------------------------------------------------------


@rule("ArrayFeatureExtractor", domain=ML)
def extract(ctx: Context) -> Sequence[Value | None]:
    """A Gather of constant positions of the last axis; refuses computed ones, and a single row."""
    x, at = ctx.input(0), ctx.ints(1)
    if x.rank < 2 or at is None or not isinstance(x.shape[-1], int):
        raise Decline("the positions are computed, or the input is a single row")
    if not differs(x):
        return ctx.write_out()
    with lowered(ctx) as step:
        return [step("Gather", x, step.ints(*at), axis=x.rank - 1)]


@rule("FeatureVectorizer", domain=ML)
def vectorizer(ctx: Context) -> Sequence[Value | None]:
    """The columns concatenated, as floats. Refuses inputs that it would cut or fill up to their declared width."""
    values = [ctx.input(i) for i in range(len(ctx.inputs))]
    widths = list(ctx.attr("inputdimensions", []))
    if any(v.rank != 2 for v in values) or [v.shape[1] for v in values] != widths:
        raise Decline("the inputs are not as wide as the attribute inputdimensions says")
    with lowered(ctx) as step:
        return [step("Concat", *(step("Cast", v, to=TensorProto.FLOAT) for v in values), axis=1)]
