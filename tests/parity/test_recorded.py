"""Recorded requests from .npz, folders and .parquet."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mari_onnx.errors import UsageError
from mari_onnx.model.signature import signature
from mari_onnx.parity import check
from mari_onnx.parity.requests.recorded import load
from tests.parity.pairs import coarse, grid, packed

PAIR = coarse()
SIGNATURE = signature(PAIR.source)


def arrays(n: int = 3) -> dict[str, np.ndarray]:
    return {
        "user_id": np.array([7]),
        "user_dense": np.ones((1, 3), np.float32),
        "item_id": np.arange(n),
        "item_dense": np.zeros((n, 2), np.float32),
    }


def test_one_request_with_user_inputs_of_one_row_or_of_n_equal_rows(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", **arrays())
    np.savez(tmp_path / "b.npz", **arrays() | {"user_id": np.array([7, 7, 7])})
    first, second = load(tmp_path, SIGNATURE, PAIR.sides)
    assert first.n == second.n == 3
    assert first.user["user_id"].tolist() == second.user["user_id"].tolist() == [7]
    assert check(PAIR.source, PAIR.optimized, PAIR.sides, requests=[first, second]).ok


def test_several_requests_in_one_file(tmp_path: Path) -> None:
    keyed = {f"{r}/{k}": v for r in range(2) for k, v in arrays(4 + r).items()}
    np.savez(tmp_path / "all.npz", **keyed)
    assert [r.n for r in load(tmp_path / "all.npz", SIGNATURE, PAIR.sides)] == [4, 5]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"user_id": np.array([7, 8, 7])},
            "user_id is tagged user, but its row 1 differs from row 0",
        ),
        ({"item_ids": np.arange(3)}, "has no input 'item_ids'.*did you mean 'item_id'"),
        ({"item_id": np.arange(4)}, "differ in their number of candidates: item_id 4, item_dense 3"),
        ({"item_id": np.array([0.5, 1, 2])}, "holds values that int64 cannot hold"),
        ({"item_dense": np.zeros(3, np.float32)}, "the model takes"),
        ({"item_id": np.array(["a", "b", "c"])}, "has type"),
    ],
)
def test_what_is_wrong_is_said(tmp_path: Path, change: dict[str, np.ndarray], message: str) -> None:
    np.savez(tmp_path / "a.npz", **arrays() | change)
    with pytest.raises(UsageError, match=f"(?s){message}"):
        load(tmp_path / "a.npz", SIGNATURE, PAIR.sides)


def test_missing_inputs_and_files(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", user_id=np.array([1]))
    with pytest.raises(UsageError, match="no values for the inputs user_dense, item_id, item_dense"):
        load(tmp_path / "a.npz", SIGNATURE, PAIR.sides)
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad.npz").write_text("no archive")
    for name in ("empty", "none.npz", "bad.npz"):
        with pytest.raises(UsageError):
            load(tmp_path / name, SIGNATURE, PAIR.sides)


def test_packed_user_columns_are_constant(tmp_path: Path) -> None:
    pair = packed()
    rows = np.arange(18, dtype=np.float32).reshape(3, 6)
    np.savez(tmp_path / "a.npz", X=rows)
    with pytest.raises(UsageError, match="tagged user"):
        load(tmp_path / "a.npz", signature(pair.source), pair.sides)
    rows[:, :3] = rows[0, :3]
    np.savez(tmp_path / "a.npz", X=rows)
    (request,) = load(tmp_path / "a.npz", signature(pair.source), pair.sides)
    assert request.n == 3


def test_n_of_untagged_requests_is_read_from_the_dimensions(tmp_path: Path) -> None:
    pair = grid()
    np.savez(tmp_path / "a.npz", user=np.ones((2, 5)), item=np.ones((2, 9, 3)))
    (request,) = load(tmp_path / "a.npz", signature(pair.source), pair.sides)
    assert (request.n, request.axis) == (9, 1)
    assert check(pair.source, pair.optimized, pair.sides, requests=[request]).ok


def test_parquet_rows_are_grouped_by_request(tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    table = {
        "session": ["a", "b", "a"],
        "user_id": [3, 4, 3],
        "user_dense": [[1.0, 2, 3], [4.0, 5, 6], [1.0, 2, 3]],
        "item_id": [10, 11, 12],
        "item_dense_0": [0.1, 0.2, 0.3],
        "item_dense_1": [0.4, 0.5, 0.6],
    }
    pandas.DataFrame(table).to_parquet(tmp_path / "r.parquet")
    first, second = load(tmp_path / "r.parquet", SIGNATURE, PAIR.sides, "session")
    assert first.n == 2
    assert second.n == 1
    assert first.rows["item_id"].tolist() == [10, 12]
    assert first.user["user_dense"].tolist() == [[1, 2, 3]]
    (tmp_path / "parts").mkdir()  # of one request there are rows in both files
    for number, at in enumerate((slice(0, 2), slice(2, 3))):
        pandas.DataFrame(table)[at].to_parquet(tmp_path / f"parts/{number}.parquet")
    again = load(tmp_path / "parts", SIGNATURE, PAIR.sides, "session")
    assert [each.rows["item_id"].tolist() for each in again] == [[10, 12], [11]]
    table["user_id"] = [3, 4, 5]
    pandas.DataFrame(table).to_parquet(tmp_path / "r.parquet")
    with pytest.raises(UsageError, match="session=a: input user_id is tagged user"):
        load(tmp_path / "r.parquet", SIGNATURE, PAIR.sides, "session")
    with pytest.raises(UsageError, match="no column 'request_id'"):
        load(tmp_path / "r.parquet", SIGNATURE, PAIR.sides)
