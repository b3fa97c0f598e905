"""Facts about operators: a row for each one of the ONNX standard and of ai.onnx.ml, and for some of com.microsoft.

A module that must tell operators apart asks for a fact: ``having(Fact.VIEW)`` or ``row("Softmax").price``. No other
module lists names of operators (`tests/test_ops.py`); what a module makes of a fact stays in that module. To add an
operator, give it a row below with the facts that hold for it *always*, whatever its attributes and opset, or name it in
`WITHOUT`. A fact that is missing costs speed alone; a wrong one costs correctness.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from dataclasses import dataclass
from enum import Flag, auto
from functools import cache

STANDARD, ML, MICROSOFT, EXTENSIONS = "", "ai.onnx.ml", "com.microsoft", "ai.onnx.contrib"
TRANSCENDENTAL = 8.0
"""FLOPs counted for one exp, log, tanh, erf, ..."""


class Fact(Flag):
    """What holds for an operator. Its first input is the data; the others are sizes, indices or parameters."""

    NONE = 0
    # ---- how elements of the result come about
    ELEMENT = auto()  # each from the inputs' elements at the same place, with broadcasting (CastLike: of the first)
    MOVES = auto()  # each is an element of the first input, perhaps at another place or repeated; see FILLS
    VIEW = auto()  # all elements of the first input, in their order, in another shape
    UNIT_DIMS = auto()  # a VIEW that only adds or drops dimensions of 1
    REPEATS = auto()  # all elements of the first input, repeated
    PICKS = auto()  # some elements of the first input
    LOOKUP = auto()  # PICKS by indices, which must be within bounds
    READS_PART = auto()  # reads only those elements of the first input that it writes
    JOINS = auto()  # all elements of all inputs, concatenated
    WRITES = auto()  # the first input, with elements of the third at places that the second names
    FILLS = auto()  # like MOVES, with elements from elsewhere among them
    SAME = auto()  # the first input itself, outside of training
    CONVERTS = auto()  # the first input's numbers in another type
    SIZES = auto()  # reads only the sizes of the first input
    GROWS = auto()  # the result may be large though the inputs are small
    FREE = auto()  # no element is read or written
    TEXT = auto()  # like ELEMENT, of strings
    PLACEWISE = auto()  # like ELEMENT, where all inputs after the first, and attributes, are parameters
    REDUCES = auto()  # one element for all positions of the reduced axes
    ROWS = auto()  # each row by itself: dimensions before the first one that it mixes only count rows
    SOFTMAX = auto()  # weights of a row by exp, or their logarithms
    NORM = auto()  # ROWS of mean square 1 (at most), times a scale, plus a bias
    ADDS_AND_NORMS = auto()  # a NORM of the last axis, of the sum of its first two inputs
    POOL = auto()  # over windows, which may lie in padding
    PRODUCT = auto()  # a contraction of data with weights or other data
    MATMUL = auto()  # a PRODUCT of its first two inputs as matrices, transposed by transA and transB, plus its third
    CONV = auto()  # a PRODUCT over windows
    INTEGER_KERNEL = auto()  # onnxruntime runs it on integers between DequantizeLinear and QuantizeLinear
    QUANTIZED = auto()  # a PRODUCT of quantized numbers: its second input is packed, or not of floats
    ITERATES = auto()  # its inputs go to a subgraph that runs many times
    RANDOM = auto()  # two runs differ
    # ---- arithmetic
    ADDS = auto()  # sum of the inputs or their negatives
    MULTIPLIES = auto()  # product of the inputs or their reciprocals
    COMMUTES = auto()  # the order of the inputs does not matter
    LINEAR = auto()  # of the first input: f(a x) = a f(x), f(x + y) = f(x) + f(y)
    RELATES = auto()  # the result depends on how its two inputs differ
    ORDERS = auto()  # a comparison by size
    VARIADIC = auto()  # any number of inputs, combined one after the other
    BOOLEAN = auto()  # the result is boolean
    LOGIC = auto()  # BOOLEAN, of boolean inputs
    WHOLE = auto()  # the result is a whole number, for floats too
    # ---- values
    FINITE = auto()  # finite for finite inputs, except for overflow and where one of the next two holds
    NEEDS_POSITIVE = auto()  # infinite or NaN where the first input is 0 or negative (a root: negative)
    NEEDS_NONZERO = auto()  # infinite, NaN or an error where the last input is 0
    NO_LARGER = auto()  # the largest absolute value is at most that of the first input
    NONNEGATIVE = auto()  # at least 0
    KEEPS_SIGN = auto()  # at least 0 if the first input is
    KEEPS_POSITIVE = auto()  # KEEPS_SIGN, and above 0 if the first input is
    KEEPS_NAN = auto()  # NaN wherever it reads an element that is NaN
    RANKS = auto()  # says which elements along an axis are the largest or smallest
    SATURATES = auto()  # many different inputs may have one result
    STEEP = auto()  # away from 0 results overflow, vanish or saturate within few units
    # ---- how it is computed here and by others
    NOT_AFFINE = auto()  # sizes of the result are cut short by others, or broadcast
    DOUBTFUL = auto()  # onnx's evaluator was seen to differ from onnxruntime, or no constant needs it: not folded
    CARRIES = auto()  # its rule keeps axes that are in no group of its inputs
    TOTAL = auto()  # no data of the right shape makes it fail (except integers that NEEDS_NONZERO excludes)
    TAKEN_APART = auto()  # onnxruntime writes it as other operators where it has no kernel for the element type
    ONE_SCALE = auto()  # quantizes its first input by the extremes of all its elements
    MISCONVERTED = auto()  # onnx's converter copies it to opset 13, where its attributes mean something else


@dataclass(frozen=True)
class Op:
    """A row: the facts about an operator.

    Attributes:
        domains: where an operator of this name is the same.
        flops: FLOPs for each element of the result, or with `per_input` of the first input; times the number of inputs
            less one if it is VARIADIC. Operators with a formula of their own: `engine/cost/flops.py`.
        price: estimated time for each element of the result, in multiply-adds of a GEMM; None where reading and
            writing it is all that takes time (`engine/cost/time_model.py`).
        bound: the largest absolute value that an element of the result can have.
        neutral: the number that, as the last input, gives the first one back; for a reduction, that changes no result.
        acts_where: the comparison with another input, or a bound, for which the result is no longer the first input.
        kinks: of one number, where the slope of the result changes.
        categories: attributes that list the categories or strings that it knows.
        holds: of a comparison, the signs of ``first - second`` for which it is true.
        function: what it computes of one number or two, a boolean being 0 or 1; of a reduction, of a list of numbers.
        gates: of a recurrent operator, how many; 0 for others.
        activation: the attributes that parametrize it, in order, where it may be the activation of a fused or recurrent
            operator and of onnxruntime's Gemm; None for others.
        type_attribute: the attribute that names the result's element type.
        float_unless_said: the result is of float32 where that attribute is missing.
        flattened_before: the opset before which the input was flattened to rows at `axis`.
        evaluated_since: the opset from which on onnx's evaluator is right about it.
        shape_input: which input is a shape; None where none is.
    """

    name: str
    domains: tuple[str, ...] = (STANDARD,)
    facts: Fact = Fact.NONE
    flops: float = 1.0
    per_input: bool = False
    price: float | None = None
    bound: float = math.inf
    neutral: float | None = None
    acts_where: str = ""
    kinks: tuple[float, ...] = ()
    categories: tuple[str, ...] = ()
    holds: frozenset[int] = frozenset()
    function: Callable[..., object] | None = None
    gates: int = 0
    activation: tuple[str, ...] | None = None
    type_attribute: str = ""
    float_unless_said: bool = False
    flattened_before: int = 0
    evaluated_since: int = 0
    shape_input: int | None = None


TABLE: dict[str, Op] = {}


def row(op: str) -> Op:
    """The facts about an operator; none for one that is not known. The domain is for the caller to look at."""
    return TABLE.get(op) or Op(op)


@cache
def having(facts: Fact, domain: str | None = None) -> frozenset[str]:
    """Names of the operators for which all these facts hold, of one domain or of any."""
    return frozenset(x.name for x in TABLE.values() if facts in x.facts and (domain is None or domain in x.domains))


def mirrored(op: str) -> str:
    """The comparison of (y, x) that says what `op` says of (x, y)."""
    signs = frozenset(-sign for sign in row(op).holds)
    return next(x.name for x in TABLE.values() if x.holds == signs)


def turns_below(op: str) -> bool:
    """Whether a comparison of whole numbers with c, one that ORDERS, changes between c - 1 and c, not behind c."""
    return (-1 in row(op).holds) != (0 in row(op).holds)


def _rows(names: str, facts: Fact = Fact.NONE, *domains: str, **fields: object) -> None:
    """One row for each name; without domains, of the standard."""
    for name in names.split():
        assert name not in TABLE, name
        TABLE[name] = Op(name, domains or (STANDARD,), facts, **fields)  # type: ignore[arg-type]


def _table() -> None:
    """All rows, by family."""
    f = Fact
    element = f.ELEMENT | f.CARRIES | f.TOTAL | f.KEEPS_NAN
    finite = element | f.FINITE
    asks = finite & ~f.KEEPS_NAN  # these treat a NaN as one case among others
    slow = TRANSCENDENTAL

    # ---- element-wise, of one input
    _rows("Abs", finite | f.NO_LARGER | f.NONNEGATIVE, kinks=(0.0,))
    _rows("Neg", finite | f.LINEAR | f.NO_LARGER, function=operator.neg)
    _rows("Relu", finite | f.NO_LARGER | f.NONNEGATIVE, activation=(), kinks=(0.0,))
    _rows("LeakyRelu", finite | f.INTEGER_KERNEL, flops=2.0, activation=("alpha",), kinks=(0.0,))
    _rows("PRelu", finite, flops=2.0, kinks=(0.0,))
    _rows("ThresholdedRelu", asks | f.NO_LARGER | f.SATURATES, activation=("alpha",))
    _rows("Shrink", asks | f.SATURATES)
    _rows("Sign", finite | f.WHOLE | f.SATURATES, bound=1.0, kinks=(0.0,))
    _rows("Floor Ceil Round", finite | f.WHOLE | f.SATURATES)
    _rows("Clip", finite | f.SATURATES, flops=2.0, acts_where="Less")
    _rows("HardSigmoid", finite | f.NONNEGATIVE | f.SATURATES, flops=2.0, bound=1.0, activation=("alpha", "beta"))
    _rows("HardSwish", finite | f.STEEP | f.NO_LARGER | f.SATURATES | f.TAKEN_APART, flops=2.0, kinks=(-3.0, 3.0))
    gate = finite | f.STEEP | f.NONNEGATIVE | f.SATURATES | f.INTEGER_KERNEL
    _rows("Sigmoid", gate, flops=slow, price=40.0, bound=1.0, activation=())
    _rows("Tanh", finite | f.STEEP | f.SATURATES, flops=slow, price=40.0, bound=1.0, activation=())
    _rows("Erf", finite | f.STEEP | f.SATURATES, flops=slow, price=40.0, bound=1.0)
    _rows("Softsign", finite, flops=2.0, bound=1.0, activation=())
    _rows("Softplus", finite | f.STEEP | f.NONNEGATIVE, flops=slow, activation=())
    _rows("Elu", finite | f.STEEP, flops=slow, activation=("alpha",), kinks=(0.0,))
    _rows("Selu", finite | f.STEEP, flops=slow, activation=("alpha", "gamma"), kinks=(0.0,))
    _rows("Celu", finite, flops=slow, kinks=(0.0,))
    _rows("Gelu", finite | f.STEEP | f.NO_LARGER | f.TAKEN_APART, STANDARD, MICROSOFT, flops=slow, price=50.0)
    _rows("Mish", finite | f.STEEP | f.NO_LARGER | f.TAKEN_APART, flops=slow)
    _rows("Swish", finite | f.STEEP | f.NO_LARGER, flops=slow)
    _rows("QuickGelu", finite | f.STEEP | f.NO_LARGER, MICROSOFT, flops=slow)
    _rows("FastGelu BiasGelu FusedGelu", finite, MICROSOFT, flops=slow)
    _rows("Exp", element | f.STEEP | f.NONNEGATIVE, flops=slow, price=30.0)
    _rows("Log", finite | f.NEEDS_POSITIVE, flops=slow, price=40.0)
    _rows("Sqrt", finite | f.NEEDS_POSITIVE | f.KEEPS_SIGN | f.KEEPS_POSITIVE, flops=slow, price=15.0)
    _rows("Reciprocal", finite | f.NEEDS_NONZERO | f.KEEPS_SIGN | f.KEEPS_POSITIVE)
    _rows("Sin Cos", finite, flops=slow, bound=1.0)
    _rows("Atan Asinh", finite, flops=slow)
    _rows("Tan Asin Acos Acosh Atanh", element, flops=slow)
    _rows("Sinh Cosh", element | f.STEEP, flops=slow)
    _rows("Not", asks | f.BOOLEAN | f.LOGIC | f.SATURATES)
    _rows("IsNaN IsInf", asks | f.BOOLEAN | f.SATURATES)
    _rows("BitwiseNot", asks)

    # ---- element-wise, of several inputs
    _rows("Add", finite | f.ADDS | f.COMMUTES | f.INTEGER_KERNEL, neutral=0.0, function=operator.add)
    _rows("Sub", finite | f.ADDS | f.RELATES, neutral=0.0, function=operator.sub)
    _rows("Mul", finite | f.MULTIPLIES | f.COMMUTES | f.LINEAR | f.INTEGER_KERNEL, neutral=1.0, function=operator.mul)
    _rows("Div", finite | f.MULTIPLIES | f.LINEAR | f.NEEDS_NONZERO, price=15.0, neutral=1.0)
    _rows("Mod", asks | f.NEEDS_NONZERO | f.SATURATES, acts_where="GreaterOrEqual")
    _rows("Pow", element & ~f.KEEPS_NAN | f.STEEP, flops=slow, price=40.0)
    _rows("Sum", finite | f.ADDS | f.COMMUTES | f.VARIADIC)
    _rows("Mean", finite | f.COMMUTES | f.VARIADIC)
    _rows("Max", finite | f.COMMUTES | f.VARIADIC | f.SATURATES, function=max, acts_where="Less")
    _rows("Min", finite | f.COMMUTES | f.VARIADIC | f.SATURATES, function=min, acts_where="Greater")
    compares = asks | f.BOOLEAN | f.RELATES | f.SATURATES
    _rows("Equal", compares | f.COMMUTES, holds=frozenset({0}))
    _rows("Less", compares | f.ORDERS, holds=frozenset({-1}))
    _rows("Greater", compares | f.ORDERS, holds=frozenset({1}))
    _rows("LessOrEqual", compares | f.ORDERS, holds=frozenset({-1, 0}))
    _rows("GreaterOrEqual", compares | f.ORDERS, holds=frozenset({0, 1}))
    logic = asks | f.COMMUTES | f.BOOLEAN | f.LOGIC | f.SATURATES
    _rows("And", logic, function=min)
    _rows("Or", logic, function=max)
    _rows("Xor", logic | f.RELATES)
    _rows("BitwiseAnd BitwiseOr BitwiseXor", asks | f.COMMUTES)
    _rows("BitShift", asks | f.SATURATES)
    _rows("Where", asks | f.INTEGER_KERNEL, flops=0.0)
    _rows("Cast", asks | f.CONVERTS | f.SATURATES, flops=0.0, type_attribute="to")
    _rows("CastLike", asks | f.CONVERTS, flops=0.0)
    _rows("Identity", finite | f.SAME | f.FREE | f.NO_LARGER | f.KEEPS_SIGN | f.KEEPS_POSITIVE, flops=0.0)

    # ---- movement
    moves = f.MOVES | f.LINEAR | f.KEEPS_NAN | f.NO_LARGER | f.KEEPS_SIGN | f.KEEPS_POSITIVE
    view = moves | f.VIEW | f.FREE | f.CARRIES | f.TOTAL
    part = moves | f.PICKS | f.READS_PART
    _rows("Reshape", view, flops=0.0, shape_input=1)
    _rows("Flatten", view, flops=0.0)
    _rows("Squeeze Unsqueeze", view | f.UNIT_DIMS, flops=0.0)
    _rows("Transpose", moves | f.CARRIES | f.TOTAL, flops=0.0)
    _rows("Expand", moves | f.REPEATS | f.GROWS | f.NOT_AFFINE | f.CARRIES | f.TOTAL, flops=0.0, shape_input=1)
    _rows("Tile", moves | f.REPEATS | f.GROWS, flops=0.0)
    _rows("Slice", part | f.NOT_AFFINE | f.CARRIES | f.TOTAL, flops=0.0)
    _rows("Split", part, flops=0.0)
    _rows("Gather", part | f.LOOKUP | f.CARRIES, flops=0.0)
    _rows("GatherElements GatherND", part | f.LOOKUP, flops=0.0)
    _rows("GatherBlockQuantized EmbedLayerNormalization", f.READS_PART, MICROSOFT)
    _rows("DepthToSpace SpaceToDepth ReverseSequence", moves, flops=0.0)
    _rows("Pad", f.MOVES | f.FILLS | f.KEEPS_NAN, flops=0.0)
    _rows("Trilu", f.MOVES | f.FILLS, flops=0.0)
    _rows("Concat", f.JOINS | f.TOTAL | f.KEEPS_NAN | f.INTEGER_KERNEL, flops=0.0)
    _rows("Compress", part, flops=0.0)
    _rows("ScatterElements ScatterND Scatter", f.WRITES | f.KEEPS_NAN, flops=0.0)
    _rows("Unique SplitToSequence ConcatFromSequence "
          "SequenceConstruct SequenceAt", flops=0.0)  # fmt: skip
    _rows("Shape Size", f.SIZES | f.FREE | f.CARRIES | f.TOTAL, flops=0.0)
    _rows("Constant", f.FREE | f.TOTAL, flops=0.0)
    _rows("ConstantOfShape", f.GROWS | f.TOTAL, flops=0.0, shape_input=0)
    _rows("Range", f.GROWS, flops=0.0)
    _rows("OneHot", f.GROWS | f.SATURATES, flops=0.0)
    _rows("NonZero", f.SATURATES, flops=0.0)
    _rows("Dropout", f.KEEPS_NAN | f.SAME | f.FREE | f.FINITE, flops=0.0)
    _rows("Optional", f.FREE, flops=0.0)

    # ---- random numbers, and what is of a type that an attribute names
    _rows("RandomNormal RandomUniform", f.RANDOM, flops=0.0, type_attribute="dtype", float_unless_said=True)
    _rows("RandomNormalLike RandomUniformLike", f.RANDOM, flops=0.0, type_attribute="dtype")
    _rows("Bernoulli", f.RANDOM, type_attribute="dtype")
    _rows("Multinomial", f.RANDOM)
    _rows("SequenceEmpty", type_attribute="dtype", float_unless_said=True)
    _rows("EyeLike", flops=0.0, type_attribute="dtype")
    _rows("HannWindow", type_attribute="output_datatype")

    # ---- over axes
    reduces = f.REDUCES | f.CARRIES | f.TOTAL
    sums = reduces | f.FINITE
    _rows("ReduceSum", f.KEEPS_NAN | sums | f.LINEAR | f.KEEPS_SIGN, per_input=True, neutral=0.0, function=sum)
    _rows("ReduceMean", f.KEEPS_NAN | sums | f.LINEAR | f.NO_LARGER | f.KEEPS_SIGN, per_input=True, neutral=0.0)
    _rows("ReduceMax", sums | f.NO_LARGER | f.KEEPS_SIGN, per_input=True, neutral=-math.inf)
    _rows("ReduceMin", sums | f.NO_LARGER | f.KEEPS_SIGN, per_input=True, neutral=math.inf)
    _rows("ReduceProd", f.KEEPS_NAN | reduces | f.KEEPS_SIGN, per_input=True, neutral=1.0, function=math.prod)
    _rows("ReduceL1", f.KEEPS_NAN | sums | f.NONNEGATIVE, per_input=True, neutral=0.0)
    _rows("ReduceL2 ReduceSumSquare", f.KEEPS_NAN | sums | f.NONNEGATIVE, flops=2.0, per_input=True, neutral=0.0)
    _rows("ReduceLogSum", reduces, flops=slow + 1, per_input=True, neutral=0.0)
    _rows("ReduceLogSumExp", reduces | f.STEEP, flops=slow + 1, per_input=True, neutral=-math.inf)
    _rows("ArgMax ArgMin", f.SATURATES | f.RANKS, per_input=True)
    _rows("CumSum CumProd", f.KEEPS_NAN, per_input=True)
    _rows("TopK", f.SATURATES | f.RANKS, flops=4.0, per_input=True)
    weights = f.ROWS | f.SOFTMAX | f.STEEP | f.KEEPS_NAN
    shares = weights | f.NONNEGATIVE | f.SATURATES | f.INTEGER_KERNEL
    _rows("Softmax", shares, flops=slow + 4, per_input=True, price=25.0, bound=1.0, flattened_before=13,
          evaluated_since=13)  # fmt: skip
    _rows("LogSoftmax", weights | f.DOUBTFUL, flops=slow + 4, per_input=True, flattened_before=13)
    _rows("Hardmax", f.ROWS | f.NONNEGATIVE | f.SATURATES | f.MISCONVERTED, per_input=True, bound=1.0,
          flattened_before=13, evaluated_since=13)  # fmt: skip
    _rows("BiasSoftmax", f.NONE, MICROSOFT, flops=slow + 4, per_input=True)
    _rows("LpNormalization", f.KEEPS_NAN | f.ROWS | f.DOUBTFUL, flops=2.0, per_input=True)
    norm = f.ROWS | f.NORM | f.KEEPS_NAN
    _rows("LayerNormalization", norm, STANDARD, MICROSOFT, flops=8.0, per_input=True, price=40.0)
    _rows("RMSNormalization", norm, flops=5.0, per_input=True)
    _rows("SimplifiedLayerNormalization", norm, STANDARD, MICROSOFT, flops=5.0, per_input=True)
    skip = f.KEEPS_NAN | f.ADDS_AND_NORMS
    _rows("SkipLayerNormalization SkipSimplifiedLayerNormalization", skip, MICROSOFT, flops=9.0, per_input=True)
    _rows("InstanceNormalization GroupNormalization MeanVarianceNormalization", f.KEEPS_NAN, flops=8.0, per_input=True)
    _rows("BatchNormalization", f.PLACEWISE | f.KEEPS_NAN, flops=2.0, evaluated_since=14)
    _rows("MaxPool AveragePool LpPool", f.POOL | f.DOUBTFUL, per_input=True)
    _rows("GlobalAveragePool GlobalMaxPool", f.NO_LARGER, per_input=True)
    _rows("GlobalLpPool", f.DOUBTFUL, per_input=True)
    _rows("DFT", flops=20.0, per_input=True)

    # ---- products and recurrences (formulas: engine/cost/flops.py)
    _rows("MatMul Gemm", f.KEEPS_NAN | f.PRODUCT | f.MATMUL | f.INTEGER_KERNEL)
    _rows("FusedMatMul FusedMatMulActivation TransposeMatMul FusedGemm", f.KEEPS_NAN | f.PRODUCT | f.MATMUL, MICROSOFT)
    _rows("MatMulInteger", f.PRODUCT | f.QUANTIZED)
    # the evaluator adds the zero point before it rounds, which is another step at ties
    _rows("QLinearMatMul", f.PRODUCT | f.QUANTIZED | f.DOUBTFUL)
    _rows("MatMulIntegerToFloat QGemm", f.PRODUCT | f.QUANTIZED, MICROSOFT)
    _rows("DynamicQuantizeMatMul", f.PRODUCT | f.QUANTIZED | f.ONE_SCALE, MICROSOFT)
    _rows("MatMulNBits", f.PRODUCT | f.QUANTIZED, MICROSOFT)
    _rows("Einsum", f.KEEPS_NAN | f.PRODUCT)
    _rows("Conv", f.KEEPS_NAN | f.PRODUCT | f.CONV | f.INTEGER_KERNEL)
    _rows("FusedConv NhwcFusedConv", f.PRODUCT | f.CONV, MICROSOFT)
    _rows("ConvTranspose", f.PRODUCT | f.CONV | f.DOUBTFUL)
    _rows("ConvInteger", f.PRODUCT | f.CONV | f.QUANTIZED)
    _rows("QLinearConv", f.PRODUCT | f.CONV | f.QUANTIZED | f.DOUBTFUL)
    _rows("GRU", f.DOUBTFUL, gates=3)
    _rows("LSTM", f.DOUBTFUL, gates=4)
    _rows("RNN", f.DOUBTFUL, gates=1)
    _rows("DynamicQuantizeLinear", f.ONE_SCALE)
    _rows("DynamicQuantizeLSTM", f.NONE, MICROSOFT, gates=4)
    _rows("Attention RotaryEmbedding", f.KEEPS_NAN | f.DOUBTFUL, STANDARD, MICROSOFT)
    _rows("DequantizeLinear", flops=2.0)
    _rows("QuantizeLinear", flops=3.0)

    # ---- what onnx's evaluator has otherwise than onnxruntime, and no rule is about
    _rows("Resize Upsample", f.DOUBTFUL | f.MISCONVERTED)
    _rows("GridSample AffineGrid LRN MaxUnpool MaxRoiPool RoiAlign NonMaxSuppression DeformConv Col2Im "
          "ImageDecoder SequenceInsert", f.DOUBTFUL)  # fmt: skip

    # ---- strings, and bodies
    _rows("StringConcat", f.TEXT)
    _rows("RegexFullMatch", f.TEXT | f.BOOLEAN)
    _rows("StringNormalizer", f.PLACEWISE, categories=("stopwords",))
    _rows("StringToHashBucket StringToHashBucketFast StringLower StringUpper", f.PLACEWISE, EXTENSIONS)
    _rows("TfIdfVectorizer", flops=20.0, per_input=True, categories=("pool_strings", "pool_int64s"))
    _rows("Loop Scan", f.ITERATES)

    # ---- ai.onnx.ml
    _rows("Scaler", f.PLACEWISE, ML, flops=2.0)
    _rows("Imputer", f.PLACEWISE, ML)
    _rows("OneHotEncoder", f.SATURATES, ML, flops=0.0, categories=("cats_strings", "cats_int64s"))
    _rows("CategoryMapper", f.NONE, ML, categories=("cats_strings", "cats_int64s"))
    _rows("ArrayFeatureExtractor", moves | f.PICKS, ML, flops=0.0)
    _rows("FeatureVectorizer", f.JOINS, ML, flops=0.0)
    _rows("Binarizer", f.PLACEWISE | f.SATURATES, ML)
    _rows("TreeEnsembleRegressor TreeEnsembleClassifier", f.SATURATES, ML)
    keys = ("keys_strings", "keys_int64s", "keys_floats", "keys_tensor", "classes_strings")
    _rows("LabelEncoder", f.SATURATES, ML, categories=keys)


WITHOUT = {
    STANDARD: """
        BitCast BlackmanWindow CausalConvWithState CenterCropPad Det HammingWindow If
        LinearAttention MelWeightMatrix NegativeLogLikelihoodLoss OptionalGetElement OptionalHasElement
        STFT SequenceErase SequenceLength SequenceMap SoftmaxCrossEntropyLoss StringSplit SwiGLU TensorScatter""",
    ML: """
        CastMap DictVectorizer LinearClassifier LinearRegressor Normalizer SVMClassifier
        SVMRegressor TreeEnsemble ZipMap""",
    MICROSOFT: """
        BiasAdd BiasSplitGelu GroupQueryAttention MultiHeadAttention QLinearAdd QLinearConcat QLinearLeakyRelu
        QLinearMul QLinearSigmoid QLinearSoftmax""",
}
"""Operators about which no module needs a fact, by domain: they have rules, shapes or costs of their own, or none."""

_table()
