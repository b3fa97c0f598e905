"""Sides from flags, files, metadata, dimensions and names."""

from __future__ import annotations

import pytest

from mari_onnx.errors import NoSuchInput, SideFileError, TaggedTwice, UntaggedInput, UsageError
from mari_onnx.model.signature import signature
from mari_onnx.sides.guess import guess_side, guessed_flags
from mari_onnx.sides.resolve import Sides, resolve, side_file_beside
from tests import tiny


def sig(**shapes):
    return signature(tiny.inputs(**shapes))


TWO = sig(user_id=["N", 1], item_id=["N", 1])
PACKED = sig(X=["N", 6])


def test_flags_tag_by_shell_pattern():
    found = resolve(TWO, user=["user_*"], item=["*item*"])
    assert found == Sides({"user_id": "user", "item_id": "item"})


def test_rest_tags_what_is_left():
    assert resolve(TWO, user=["user_id"], rest="cross").side("item_id") == "cross"


def test_an_exact_name_is_no_pattern():
    found = resolve(sig(**{"a[0]": ["N"], "a0": ["N"]}), user=["a[0]"], rest="item")
    assert found.inputs == {"a[0]": "user", "a0": "item"}


def test_untagged_input_is_refused_by_name():
    with pytest.raises(UntaggedInput, match="item_id") as error:
        resolve(TWO, user=["user_id"])
    assert error.value.exit_code == 2
    assert "--rest" in str(error.value)


def test_nothing_said_is_nothing_tagged():
    assert not resolve(TWO)


def test_a_pattern_without_match_names_the_nearest():
    with pytest.raises(NoSuchInput, match="did you mean 'user_id'"):
        resolve(TWO, user=["usr_id"], rest="item")


def test_tagged_twice_names_both_patterns():
    with pytest.raises(TaggedTwice, match=r"item_id.*'\*'.*'item_\*'"):
        resolve(TWO, user=["*"], item=["item_*"])


def test_the_same_side_twice_is_no_conflict():
    assert resolve(TWO, user=["*", "user_id"]).of("user") == ("user_id", "item_id")


def test_scalars_need_no_side():
    assert resolve(sig(user_id=["N"], temperature=[]), user=["user_id"]).inputs == {
        "user_id": "user"
    }


def test_one_row_against_n_is_the_user():
    found = resolve(sig(profile=[1, 8], ad=["N", 4]))
    assert found.inputs == {"profile": "user", "ad": "cross"}


@pytest.mark.parametrize("shapes", [{"a": [1, 8], "b": [1, 4]}, {"a": ["N", 1], "b": ["N", 4]}])
def test_equal_batch_dimensions_tell_nothing(shapes):
    assert not resolve(sig(**shapes))


@pytest.mark.parametrize(
    ("text", "columns"),
    [
        ("X[:, 0:2]", (0, 1)),
        ("X[:,:2]", (0, 1)),
        ("X[:, -2:]", (4, 5)),
        ("X[:, ::2]", (0, 2, 4)),
        ("X[:, [0, 3, 5]]", (0, 3, 5)),
        ("X[:, [0, 3:5]]", (0, 3, 4)),
        ("X[ : , -1]", (5,)),
        ("*[:, 1]", (1,)),
    ],
)
def test_columns_of_a_packed_input(text, columns):
    found = resolve(PACKED, user=[text], rest="item")
    assert found.columns["X"]["user"] == columns
    assert sorted(found.columns["X"]["user"] + found.columns["X"]["item"]) == list(range(6))
    assert found.side("X") is None


def test_all_columns_of_one_side_are_a_whole_input():
    assert resolve(PACKED, user=["X[:, :]"]) == Sides({"X": "user"})


@pytest.mark.parametrize(
    ("text", "error", "words"),
    [
        ("X[:, 6]", NoSuchInput, "no column 6"),
        ("X[:, 4:9]", NoSuchInput, "no column 9"),
        ("X[:, 3:3]", NoSuchInput, "the selection has no columns"),
        ("X[:, a]", UsageError, "cannot read the columns 'a'"),
        ("X[:, ::0]", UsageError, "step"),
        ("Y[:, 0]", NoSuchInput, "matches no input"),
    ],
)
def test_columns_that_are_not_there(text, error, words):
    with pytest.raises(error, match=words):
        resolve(PACKED, user=[text], rest="item")


def test_untagged_columns_are_named():
    with pytest.raises(UntaggedInput, match=r"X\[:, 2:6\]"):
        resolve(PACKED, user=["X[:, 0:2]"])


def test_a_column_tagged_twice():
    with pytest.raises(TaggedTwice, match="column 1 of input 'X'"):
        resolve(PACKED, user=["X[:, 0:2]"], item=["X[:, 1:]"])


@pytest.mark.parametrize("shape", [["N"], ["N", "F"], ["N", 2, 3]])
def test_columns_want_a_matrix_of_fixed_width(shape):
    with pytest.raises(UsageError, match="columns of"):
        resolve(sig(X=shape), user=["X[:, 0]"], rest="item")


def test_flags_beat_the_file_and_the_file_the_metadata(tmp_path):
    three = sig(a=["N"], b=["N"], c=["N"])
    file = tmp_path / "m.sides.toml"
    file.write_text('user = ["a", "b"]\ncandidate_axis = 0\n')
    said = Sides({"a": "cross", "b": "cross", "c": "cross"}).to_json()
    found = resolve(three, item=["a"], file=file, metadata=said)
    assert found.inputs == {"a": "item", "b": "user", "c": "cross"}


def test_a_flag_takes_columns_out_of_an_input_that_the_file_tags(tmp_path):
    file = tmp_path / "m.sides.toml"
    file.write_text('user = ["X"]')
    found = resolve(PACKED, item=["X[:, 5]"], file=file)
    assert found.columns["X"] == {"user": (0, 1, 2, 3, 4), "item": (5,)}


def test_a_file_may_list_columns_in_a_table(tmp_path):
    file = tmp_path / "m.sides.toml"
    file.write_text('[columns.X]\nuser = [0, "2:4"]\nitem = [1, "4:6"]\n')
    assert resolve(PACKED, file=file).columns["X"] == {"user": (0, 2, 3), "item": (1, 4, 5)}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("user = [", "not TOML"),
        ("usr = ['a']", "unknown key 'usr'.*\n.*did you mean 'user'"),
        ("user = 3", "user is not a list"),
        ("rest = 'none'", "rest is 'none'"),
        ("candidate_axis = -1", "candidate_axis is -1"),
        ("columns = 3", "columns is not a table"),
        ("[columns.X]\nusr = [1]", "columns is not a table"),
    ],
)
def test_a_broken_side_file_says_what_is_wrong(tmp_path, text, words):
    file = tmp_path / "m.sides.toml"
    file.write_text(text)
    with pytest.raises(SideFileError, match=words):
        resolve(TWO, file=file)


def test_a_missing_side_file(tmp_path):
    with pytest.raises(SideFileError, match="No such file"):
        resolve(TWO, file=tmp_path / "no.toml")


@pytest.mark.parametrize("text", ["{", "[]", '{"who": []}'])
def test_broken_metadata(text):
    with pytest.raises(SideFileError, match=r"mari_onnx\.sides"):
        resolve(TWO, metadata=text)


@pytest.mark.parametrize(
    "sides",
    [
        Sides({"a": "user", "b": "item"}),
        Sides({"a": "cross"}, {"b": {"user": (0, 2), "item": (1, 3)}}),
        Sides(candidate_axis=1),
    ],
)
def test_metadata_reads_back_what_was_written(sides):
    assert resolve(sig(a=["N", 2], b=["N", 4]), metadata=sides.to_json()) == sides


def test_metadata_of_names_that_look_like_patterns():
    names = sig(**{"u*": ["N"], "u[1]": ["N"], "u1": ["N"]})
    sides = Sides({"u*": "user", "u[1]": "item", "u1": "cross"})
    assert resolve(names, metadata=sides.to_json()) == sides


def test_candidate_axis_of_flag_and_file(tmp_path):
    file = tmp_path / "m.sides.toml"
    file.write_text("candidate_axis = 1")
    grid = sig(u=["R", 4], x=["R", "N", 4])
    assert resolve(grid, file=file).candidate_axis == 1
    assert resolve(grid, file=file, candidate_axis=0).candidate_axis == 0


def test_inputs_without_the_candidate_axis_need_no_side():
    grid = sig(u=["R"], x=["R", "N"])
    assert resolve(grid, candidate_axis=1, item=["x"]).inputs == {"x": "item"}


def test_the_side_file_beside_a_model(tmp_path):
    (tmp_path / "din.sides.toml").touch()
    (tmp_path / "din.v2.sides.toml").touch()
    assert side_file_beside(tmp_path / "din.onnx").name == "din.sides.toml"
    assert side_file_beside(tmp_path / "din.torchscript.onnx").name == "din.sides.toml"
    assert side_file_beside(tmp_path / "din.v2.onnx").name == "din.v2.sides.toml"
    assert side_file_beside(tmp_path / "bst.onnx") is None


@pytest.mark.parametrize(
    ("name", "side"),
    [
        ("user_age", "user"),
        ("userAge", "user"),
        ("hist_item_id", "user"),
        ("ctx_hour", "user"),
        ("item_id", "item"),
        ("candidate.price", "item"),
        ("user_item_ctr", "cross"),
        ("cross_7d", "cross"),
        ("dense_0", None),
    ],
)
def test_guesses(name, side):
    assert guess_side(name) == side


def test_guessed_flags_are_short_and_cover_all():
    found = guessed_flags(sig(user_id=["N"], user_age=["N"], item_id=["N"], dense=["N"]))
    assert found == ["--user 'user_*'", "--item item_id", "--rest cross"]


def test_a_guess_is_used_only_when_asked_for():
    assert not resolve(TWO)
    assert resolve(TWO, guess=True).inputs == {"user_id": "user", "item_id": "item"}
    assert resolve(sig(dense=["N"]), guess=True).inputs == {"dense": "cross"}
