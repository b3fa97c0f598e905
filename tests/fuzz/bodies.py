"""Element-wise steps; bodies that capture tensors, functions, constants of all kinds."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st
from onnx import AttributeProto, TensorProto, helper, numpy_helper

from tests.engine.graphs import N
from tests.fuzz.forge import BOOL, Forge, Made, known

UNARY = (
    "Relu",
    "Sigmoid",
    "Tanh",
    "Neg",
    "Abs",
    "Identity",
    "Sin",
    "Softplus",
    "Erf",
    "LeakyRelu",
    "Elu",
    "Selu",
    "Cos",
)
NEWER = {"Gelu": 20, "Mish": 18, "HardSwish": 14, "Celu": 12}


def unary(f: Forge) -> Made:
    x, shape = f.x()
    ops = [*UNARY, "Exp", "Log", "Sqrt", "Clip", "Dropout", *(op for op, since in NEWER.items() if f.g.opset >= since)]
    op = f.one(*ops)
    if op == "Exp":
        return f.put(f.g.Exp(f.g.Tanh(x)), shape)
    if op in ("Log", "Sqrt"):
        return f.put(getattr(f.g, op)(f.g.Add(f.g.Abs(x), f.g.const(np.array(1.0)))), shape)
    if op == "Clip":
        low, high = f.g.const(np.array(-0.7)), f.g.const(np.array(1.1))
        return f.put(f.g.Clip(x, *f.one((low, high), (low,), ("", high))), shape)
    if op == "Celu" and f.g.dtype != np.float32:
        op = "Elu"
    return f.put(getattr(f.g, op)(x), shape)


def binary(f: Forge) -> Made:
    x, shape = f.x()
    other = f.broad(shape) if f.flag() else f.get(shape)
    op = f.one("Add", "Add", "Sub", "Mul", "Mul", "Div", "Max", "Min", "PRelu", "Mean", "Sum", "Where", "Pow")
    if op == "Div":
        return f.put(f.g.Div(x, f.g.Add(f.g.Abs(other), f.g.const(np.array(1.5)))), shape)
    if op == "Pow":
        return f.put(f.g.Pow(x, f.g.const(np.array(f.one(2.0, 3.0)))), shape)
    if op == "Mean" and f.g.dtype is not np.float32:
        op = "Sum"  # the evaluator's Mean does not broadcast, onnxruntime's is of float32
    if op == "PRelu":
        return f.put(f.g.PRelu(x, other), shape)
    if op == "Where":
        if f.smooth:
            return None
        condition = f.g.Greater(f.broad(shape), f.g.const(np.array(0.1)))
        if f.flag():
            condition = f.g.Not(condition)
        return f.put(f.g.Where(condition, *f.one((x, other), (other, x))), shape)
    return f.put(getattr(f.g, op)(*f.one((x, other), (other, x))), shape)


def quantize(f: Forge) -> Made:
    if f.smooth or f.g.dtype is not np.float32 or f.g.opset < 13:
        return None
    x, shape = f.x()
    f.g.plain_constants = True
    scale, zero = f.g.const(np.array(0.05), np.float32), f.g.const(np.array(3), np.int8)
    f.g.plain_constants = False
    return f.put(f.g.DequantizeLinear(f.g.QuantizeLinear(x, scale, zero), scale, zero), shape)


def cast(f: Forge) -> Made:
    if f.smooth:
        return None
    x, shape = f.x()
    mask = f.g.Less(x, f.broad(shape)) if f.flag() else f.g.Greater(x, f.g.const(np.array(0.3)))
    if f.flag():
        mask = f.g.And(mask, f.g.Less(f.broad(shape), f.g.const(np.array(0.8))))
    return f.put(f.g.Cast(mask, to=f.kind()), shape)


def branch(f: Forge) -> Made:
    """If, its branches capturing tensors of the pool."""
    x, shape = f.x()
    y = f.broad(shape)
    test = f.g.reduce("Mean", f.x()[0], None, keepdims=0)
    condition = f.g.Greater(test, f.g.const(np.array(0.05)))
    if f.int(0, 4) == 0:
        condition = f.g.const(np.array(f.flag()))
    elif f.smooth:
        return None
    then, other = f.g.name(), f.g.name()
    a = helper.make_graph([helper.make_node("Add", [x, y], [then])], "then", [], [f.info(then)])
    b = helper.make_graph([helper.make_node("Mul", [y, x], [other])], "else", [], [f.info(other)])
    return f.put(f.g.If(condition, then_branch=a, else_branch=b), shape)


def loop(f: Forge) -> Made:
    """Loop, with a state and a captured tensor."""
    x, shape = f.x()
    y = f.broad(shape)
    i, c, s, t, u, o = (f.g.name() for _ in range(6))
    nodes = [
        helper.make_node("Identity", [c], [o]),
        helper.make_node("Tanh", [s], [t]),
        helper.make_node("Add", [t, y], [u]),
    ]
    inputs = [f.info(i, (), TensorProto.INT64), f.info(c, (), BOOL), f.info(s)]
    body = helper.make_graph(nodes, "body", inputs, [f.info(o, (), BOOL), f.info(u)])
    trips = f.g.const(np.array(f.int(0, 2)), np.int64)
    return f.put(f.g.Loop(trips, f.g.const(np.array(True)), x, body=body), shape)


def scan(f: Forge) -> Made:
    """Scan along any axis, the candidates' too, with a captured tensor."""
    x, shape = f.x(lambda s: len(s) > 1)
    axis = f.axis(shape)
    if axis is None or len(shape) < 2:
        return None
    inner = (*shape[:axis], *shape[axis + 1 :])
    y = f.broad(inner)
    e, o = f.g.name(), f.g.name()
    body = helper.make_graph([helper.make_node("Add", [e, y], [o])], "body", [f.info(e)], [f.info(o)])
    made = f.g.Scan(x, body=body, num_scan_inputs=1, scan_input_axes=[axis], scan_output_axes=[axis])
    return f.put(made, shape)


def function(f: Forge) -> Made:
    """A model-local function with an attribute, called as often as it comes."""
    x, shape = f.x()
    y = f.broad(shape)
    name = f.one("Blend", "Nested")
    imports = [helper.make_opsetid("", f.g.opset), helper.make_opsetid("fuzz", 1)]
    inner = helper.make_node("LeakyRelu", ["a"], ["t"])
    inner.attribute.append(_slope())
    nodes = [inner, helper.make_node("Add", ["t", "b"], ["c"])]
    blend = helper.make_function("fuzz", "Blend", ["a", "b"], ["c"], nodes, imports, ["slope"])
    f.g.functions["Blend"] = blend
    if name == "Nested":
        call = helper.make_node("Blend", ["p", "q"], ["r"], domain="fuzz", slope=0.3)
        nodes = [call, helper.make_node("Mul", ["r", "p"], ["s"])]
        f.g.functions["Nested"] = helper.make_function("fuzz", "Nested", ["p", "q"], ["s"], nodes, imports)
        return f.put(f.g.nodes_of("Nested", [x, y], 1, domain="fuzz")[0], shape)
    return f.put(f.g.nodes_of("Blend", [x, y], 1, domain="fuzz", slope=0.25)[0], shape)


def _slope() -> AttributeProto:
    """LeakyRelu's alpha, taken from the function's attribute."""
    return AttributeProto(name="alpha", ref_attr_name="slope", type=AttributeProto.FLOAT)


def strings(f: Forge) -> Made:
    """Constants of strings beside the model: nothing reads them but a dead branch."""
    if f.g.opset < 12:
        return None
    text = f.g.nodes_of("Constant", [], 1, **f.one({"value_string": "a"}, {"value_strings": ["a", "b"]}))[0]
    f.g.Identity(text)
    tensor = f.g.nodes_of("Constant", [], 1, value=helper.make_tensor("t", TensorProto.STRING, [1], [b"z"]))[0]
    f.g.Identity(tensor)
    return None


def one_hot(f: Forge) -> Made:
    depth = f.int(2, 4)
    ids = f.g.input(f.one("user", "item"), N, high=depth)
    values = f.g.const(np.array([0.0, 1.0]))
    return f.put(f.g.OneHot(ids, f.g.const(np.array(depth), np.int64), values), (N, depth))


def scatter(f: Forge) -> Made:
    """A token written over, as caches are."""
    x, shape = f.tokens()
    n = shape[1]
    if not known(n):
        return None
    token = f.get((N, 1, shape[2]))
    keep = np.zeros((1, int(n), 1), bool)  # type: ignore[arg-type]
    keep[0, f.int(0, int(n) - 1)] = True  # type: ignore[arg-type]
    return f.put(f.g.Where(f.g.const(keep), token, x), shape)


def write(f: Forge) -> Made:
    """A token, or some, written over at a constant position, as select_scatter is exported."""
    x, shape = f.tokens()
    n = shape[1]
    if not known(n):
        return None
    at = f.draw(st.lists(st.integers(0, int(n) - 1), min_size=1, max_size=2, unique=True))  # type: ignore[arg-type]
    updates = f.get((N, len(at), shape[2]))
    f.g.plain_constants = True
    index = f.g.Expand(f.g.const(np.reshape(at, (1, -1, 1)), np.int64), f.g.Shape(updates))
    f.g.plain_constants = False
    return f.put(f.g.ScatterElements(x, index, updates, axis=f.one(1, -2)), shape)


def _to_quantize(f: Forge, least: int = 1) -> tuple[str, tuple, int] | None:
    """Float32 rows, their shape and how long they are; None where there are none, or the opset is below `least`."""
    if f.smooth or f.g.dtype is not np.float32 or f.g.opset < least:
        return None
    x, shape = f.x(lambda s: len(s) > 1 and isinstance(s[-1], int))
    width = shape[-1] if len(shape) > 1 else None
    return (x, shape, width) if isinstance(width, int) else None


def dynamic(f: Forge) -> Made:
    """A product as onnxruntime quantizes it dynamically."""
    given = _to_quantize(f)
    if given is None:
        return None
    x, shape, width = given
    columns = f.int(1, 3)
    q, scale, zero = f.g.nodes_of("DynamicQuantizeLinear", [x], 3)
    f.g.plain_constants = True
    w = f.g.const(f.g.rng.integers(-100, 100, (width, columns)), np.int8)
    f.g.plain_constants = False
    made = f.g.Mul(f.g.Cast(f.g.MatMulInteger(q, w, zero), to=1), f.g.Mul(scale, f.g.const(np.array(0.01), np.float32)))
    return f.put(made, (*shape[:-1], columns))


def static(f: Forge) -> Made:
    """A product as onnxruntime quantizes it statically: integers between DequantizeLinear and QuantizeLinear."""
    given = _to_quantize(f, 13)
    if given is None:
        return None
    x, shape, width = given
    f.g.plain_constants = True
    kind, columns, step = f.one(np.uint8, np.int8), f.int(1, 3), np.array(2.0**-5)

    def around(t: str, scale: np.ndarray) -> str:
        given = f.g.const(scale, np.float32), f.g.const(np.array(3), kind)
        return f.g.DequantizeLinear(f.g.QuantizeLinear(t, *given), *given)

    by_column = f.flag()
    scale = step * 2.0 ** (np.arange(columns) % 3) if by_column else step
    zero = np.zeros(columns if by_column else (), int)
    codes = f.g.const(f.g.rng.integers(-100, 100, (width, columns)), np.int8)
    w = f.g.DequantizeLinear(codes, f.g.const(scale, np.float32), f.g.const(zero, np.int8), axis=1)
    inner = around(x, step)
    if len(shape) == 2 and f.flag():
        sums = f.g.const(f.g.rng.integers(-500, 500, columns), np.int32)
        how = {"axis": 0} if by_column else {}
        made = f.g.Gemm(inner, w, f.g.DequantizeLinear(sums, f.g.const(step * scale, np.float32), **how))
    else:
        made = f.g.MatMul(inner, w)
    if f.flag():
        made = around(f.g.Relu(made) if f.flag() else made, 8 * step)
    f.g.plain_constants = False
    return f.put(made, (*shape[:-1], columns))


def qoperator(f: Forge) -> Made:
    """A product between quantized tensors, as onnxruntime's QOperator format has it, and steps on integers."""
    given = _to_quantize(f, 13)
    if given is None:
        return None
    x, shape, width = given
    f.g.plain_constants = True
    kind, columns = f.one(np.uint8, np.int8), f.int(1, 3)

    def grid(power: int) -> tuple[str, str]:
        return f.g.const(np.array(2.0**power), np.float32), f.g.const(np.array(f.one(0, 5)), kind)

    def foreign(op: str, *inputs: str, **attributes: int) -> str:
        return f.g.nodes_of(op, inputs, 1, domain="com.microsoft", **attributes)[0]

    at, to = grid(-5), grid(-2)
    inner = f.g.QuantizeLinear(x, *at)
    if f.flag():  # integers move
        inner = f.g.Concat(inner, f.g.QuantizeLinear(f.get(shape), *at), axis=-1)
        shape = (*shape[:-1], 2 * shape[-1])  # type: ignore[operator]
    w = f.g.const(f.g.rng.integers(-100, 100, (width, columns)), np.int8)
    scale, none = f.g.const(np.array(2.0**-6), np.float32), f.g.const(np.array(0), np.int8)
    if len(shape) == 2 and f.int(0, 2) == 0:
        sums = f.g.const(f.g.rng.integers(-500, 500, columns), np.int32)
        made = foreign("QGemm", inner, *at, w, scale, none, sums, *to)
    else:
        made = f.g.QLinearMatMul(inner, *at, w, scale, none, *to)
    out = (*shape[:-1], columns)
    how = f.int(0, 5)
    if how == 0:
        made = foreign("QLinearAdd", made, *to, f.g.QuantizeLinear(f.broad(out), *to), *to, *to)
    elif how == 1:
        wide = grid(-7)
        made, to = foreign("QLinearSigmoid", made, *to, *wide), wide
    f.g.plain_constants = False
    return f.put(f.g.DequantizeLinear(made, *to), out)


def squeeze_if(f: Forge) -> Made:
    """`x.squeeze(axis)` of the older exporter where it does not know the dimension: an If that asks for it."""
    x, shape = f.x(lambda s: len(s) > 1)
    axis = f.axis(shape)
    if axis is None or len(shape) < 2 or f.g.opset < 13:
        return None
    one = f.g.Equal(f.g.size(x, axis), f.g.const(np.array([1]), np.int64))
    gone = shape[axis] == 1
    if not gone and (shape[axis] == N or not isinstance(shape[axis], int)):
        return None  # another rank at one candidate
    then, other, places = f.g.name(), f.g.name(), f.g.name()
    held = helper.make_node("Constant", [], [places], value=numpy_helper.from_array(np.array([axis], np.int64)))
    nodes = [held, helper.make_node("Squeeze", [x, places], [then])]
    a = helper.make_graph(nodes, "then", [], [f.info(then)])
    b = helper.make_graph([helper.make_node("Identity", [x], [other])], "else", [], [f.info(other)])
    made = f.g.If(f.g.squeeze(one, [0]), then_branch=a, else_branch=b)
    return f.put(made, (*shape[:axis], *shape[axis + 1 :]) if gone else shape)


def write_slice(f: Forge) -> Made:
    """Tokens written over by ScatterND, as the older exporter writes an assignment to a slice."""
    if f.g.opset < 13:
        return None
    x, shape = f.tokens()
    n = shape[1]
    if not known(n):
        return None
    start = f.int(0, int(n) - 1)  # type: ignore[arg-type]
    stop = f.int(start + 1, int(n))  # type: ignore[arg-type]
    turned = f.g.Transpose(x, perm=[1, 0, 2])
    updates = f.g.Transpose(f.get((N, stop - start, shape[2])), perm=[1, 0, 2])
    f.g.plain_constants = True
    index = f.g.const(np.arange(start, stop)[:, None], np.int64)
    f.g.plain_constants = False
    return f.put(f.g.Transpose(f.g.ScatterND(turned, index, updates), perm=[1, 0, 2]), shape)


def constant_tensor(f: Forge) -> Made:
    """ConstantOfShape of the candidates, with an operand beside it."""
    x, shape = f.x(lambda s: len(s) == 2 and s[0] == N)
    if len(shape) != 2 or shape[0] != N or not isinstance(shape[1], int):
        return None
    width = f.int(1, 3)
    target = f.g.Concat(f.g.size(x, 0), f.ints([width]), axis=0)
    value = numpy_helper.from_array(np.array([f.one(0.0, 0.5)]).astype(f.g.dtype))
    filled = f.g.ConstantOfShape(target, value=value)
    return f.put(f.g.Concat(filled, x, axis=1), (N, width + shape[1]))
