"""An index of user rows, one entry per candidate, is no user input, whatever it is called."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from mari_onnx.api import optimize
from mari_onnx.errors import SidesUnknown, UsageError
from mari_onnx.sides.row_index import row_indices
from tests.test_candidates import WIDE
from tests.test_signatures import FLOAT, INT64, Shape, model, node, tensor


def picked(index: Shape = ("P",), reshaped: bool = False, also: bool = False, table: bool = False) -> onnx.ModelProto:
    """Rows of user [R, 8], or of a weight, by an index per candidate, beside item [P, 4]."""
    nodes = [node("MatMul", "user U", "v"), node("ReduceSum", "user", "s", keepdims=0)]
    nodes += [node("Reshape", "user_row flat", "i")] if reshaped else [node("Identity", "user_row", "i")]
    nodes += [node("Gather", "E i" if table else "v i", "g")]
    nodes += [node("Cast", "user_row", "f", to=FLOAT)] if also else []
    nodes += [node("Concat", "g item", "c", axis=1), node("MatMul", "c W", "h"), node("Mul", "h s", "r")]
    nodes += [node("MatMul", "r V", "y" if not also else "z"), *([node("Add", "z f", "y")] if also else [])]
    weights = [tensor("U", 8, 8), tensor("E", 5, 8), tensor("W", 12, WIDE), tensor("V", WIDE, 1)]
    weights.append(numpy_helper.from_array(np.array([-1]), "flat"))
    return model(nodes, [("user", FLOAT, ["R", 8]), ("item", FLOAT, ["P", 4]), ("user_row", INT64, index)], weights)


USER = {"user": "user", "user_row": "user", "item": "item"}


@pytest.mark.parametrize("checked", [True, False])
@pytest.mark.parametrize("source", [picked(), picked(["P", 1], True)], ids=["[P]", "[P, 1]"])
def test_an_index_tagged_user_is_refused(source: onnx.ModelProto, checked: bool) -> None:
    assert row_indices(source) == {"user_row": frozenset({"user"})}
    with pytest.raises(UsageError, match="picks, for each candidate, a row of user") as error:
        optimize(source, USER, check=checked)
    assert "--cross user_row" in str(error.value)
    assert "--index user_row" in str(error.value)


def test_the_suggestion_never_makes_it_the_users() -> None:
    with pytest.raises(SidesUnknown) as error:
        optimize(picked())
    assert "--index user_row" in str(error.value)
    assert "--user user " in str(error.value)
    with pytest.raises(SidesUnknown) as error:
        optimize(picked(table=True))
    assert "--user 'user_*'" in str(error.value) or "--user user_row" in str(error.value)


def test_an_id_is_no_index_and_neither_is_what_is_read_otherwise() -> None:
    assert row_indices(picked(table=True)) == {}
    assert row_indices(picked(also=True)) == {}


def test_an_index_tagged_cross_is_right() -> None:
    optimize(picked(), USER | {"user_row": "cross"})


def test_one_index_for_all_candidates_is_the_users() -> None:
    """[1] is one row of the user's own, such as the last of a history."""
    nodes = [node("Gather", "user user_row", "g"), node("Mul", "item g", "r"), node("MatMul", "r V", "y")]
    inputs = [("user", FLOAT, ["T", 4]), ("item", FLOAT, ["P", 4]), ("user_row", INT64, [1])]
    optimize(model(nodes, inputs, [tensor("V", 4, 1)]), USER)
