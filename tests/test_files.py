"""Files: broken ones are refused with what is wrong, good ones appear whole or not at all."""

from __future__ import annotations

import errno
import multiprocessing
import os
import random
import signal
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from mari_onnx.errors import (
    ExternalDataError,
    InvalidModel,
    ModelNotFound,
    NotAModel,
    OutputInTheWay,
    WriteError,
)
from mari_onnx.model import load, save
from mari_onnx.model.tensors import array, set_external
from mari_onnx.model.topological_sort import put_in_order
from tests import tiny

KILLS = int(os.environ.get("MARI_ONNX_KILLS", "20"))
"""Rounds of the tests that kill a process; `make kills` runs 200."""
posix = pytest.mark.skipif(os.name != "posix", reason="needs POSIX")


def same(a: onnx.ModelProto, b: onnx.ModelProto) -> bool:
    return a.SerializeToString(deterministic=True) == b.SerializeToString(deterministic=True)


@pytest.fixture
def model() -> onnx.ModelProto:
    return tiny.fc(user=64, item=32, hidden=64)


@pytest.fixture
def lazy(monkeypatch):
    """Every file counts as large, every tensor of 256 bytes too."""
    monkeypatch.setattr(load, "LAZY_FILE", 1)
    monkeypatch.setattr(load, "LAZY_TENSOR", 256)


# Reading


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (b"opset 17, hello there\n", "is text"),
        (b"\x08\x07\xff\xff\xff", "cut off, or is not an ONNX"),
        (b"PK\x03\x04rest", "a zip archive"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
        (b"\x08\x07", "holds no ONNX graph"),
    ],
)
def test_what_is_not_a_model_is_named(tmp_path, content, words):
    path = tmp_path / "m.onnx"
    path.write_bytes(content)
    with pytest.raises(NotAModel, match=words):
        load.load(path)


def test_no_file_names_its_neighbour(tmp_path, model):
    save.save(model, tmp_path / "ranker.onnx")
    with pytest.raises(ModelNotFound, match=r"did you mean .*ranker\.onnx"):
        load.load(tmp_path / "rankr.onnx")


def test_a_folder_is_no_model(tmp_path):
    with pytest.raises(ModelNotFound, match="is a folder"):
        load.load(tmp_path)


@pytest.mark.parametrize("keep", [0.1, 0.5, 0.9, 0.999])
def test_truncated_files_are_refused(tmp_path, model, keep):
    data = model.SerializeToString()
    path = tmp_path / "m.onnx"
    path.write_bytes(data[: int(len(data) * keep)])
    with pytest.raises((NotAModel, InvalidModel)):
        load.load(path)


@pytest.mark.usefixtures("lazy")
@pytest.mark.parametrize("keep", [0.1, 0.5, 0.9, 0.999])
def test_truncated_large_files_are_refused(tmp_path, model, keep):
    test_truncated_files_are_refused(tmp_path, model, keep)


def test_a_dangling_input_is_named(tmp_path, model):
    del model.graph.initializer[:]
    path = tmp_path / "m.onnx"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(InvalidModel, match=r"'product' \(MatMul\) reads 'w'"):
        load.load(path)


def test_nodes_out_of_order_are_sorted(tmp_path):
    """onnxruntime's float16 converter appends the Casts of inputs; onnxruntime runs such a file."""
    text = """<ir_version: 8, opset_import: ["": 17]>
        g (float[N, 4] u, bool c) => (float[N, 4] y) {
            late = Add (first, branch)
            branch = If (c) <
                then_branch = then () => (float[N, 4] t) { t = Neg (two)  two = Mul (first, first) },
                else_branch = other () => (float[N, 4] e) { e = Abs (first) }>
            y = Relu (late)
            first = Sigmoid (u)
        }"""
    source = onnx.parser.parse_model(text)
    before = source.SerializeToString(deterministic=True)
    path = tmp_path / "m.onnx"
    path.write_bytes(before)
    for made in (load.load(path), put_in_order(source, copy=True)):
        assert [n.op_type for n in made.graph.node] == ["Sigmoid", "If", "Add", "Relu"]
        assert [n.op_type for n in made.graph.node[1].attribute[0].g.node] == ["Mul", "Neg"]
        onnx.checker.check_model(made)
        assert put_in_order(made, copy=True) is made
    assert source.SerializeToString(deterministic=True) == before


def test_nodes_that_wait_for_each_other_are_refused(tmp_path, model):
    node = model.graph.node.add(op_type="Neg", input=["loop_b"], output=["loop_a"])
    model.graph.node.add(op_type="Neg", input=[node.output[0]], output=["loop_b"])
    path = tmp_path / "m.onnx"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(InvalidModel, match="reads 'loop_b'"):
        load.load(path)


def test_an_output_that_nothing_writes(tmp_path, model):
    model.graph.output[0].name = "logit"
    path = tmp_path / "m.onnx"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(InvalidModel, match="nothing writes the output 'logit'"):
        load.load(path)


def test_a_name_written_twice(tmp_path, model):
    model.graph.node.append(model.graph.node[0])
    path = tmp_path / "m.onnx"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(InvalidModel, match="'x', which an earlier node writes too"):
        load.load(path)


def test_a_domain_that_is_not_imported(tmp_path, model):
    model.graph.node[1].domain = "com.example"
    path = tmp_path / "m.onnx"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(InvalidModel, match=r"com\.example"):
        load.load(path)


def test_graphs_nested_as_deep_as_protobuf_reads(tmp_path, model):
    graph = model.graph
    for depth in range(30):
        outer = onnx.GraphProto(name=f"g{depth}")
        outer.CopyFrom(graph)
        del outer.node[:]
        node = outer.node.add(op_type="If", name=f"if{depth}", input=["user_x"], output=["score"])
        node.attribute.add(name="then_branch", type=onnx.AttributeProto.GRAPH).g.CopyFrom(graph)
        graph = outer
    nested = onnx.ModelProto(ir_version=10, graph=graph, opset_import=model.opset_import)
    save.save(nested, tmp_path / "m.onnx")
    assert same(load.load(tmp_path / "m.onnx"), nested)


# External data


def external_model(folder: Path, model: onnx.ModelProto, location: str, **entries) -> Path:
    folder.mkdir(exist_ok=True)
    data = model.graph.initializer[0].raw_data
    set_external(
        model.graph.initializer[0],
        location,
        entries.get("offset", 0),
        entries.get("length", len(data)),
    )
    path = folder / "m.onnx"
    path.write_bytes(model.SerializeToString())
    (folder / "w.bin").write_bytes(data)
    return path


def test_the_name_of_a_model_may_end_in_anything(tmp_path, model):
    for name in ("model", "model.pb", "model.txt", "model.onnx.bak"):
        save.save(model, tmp_path / name)
        assert same(load.load(tmp_path / name), model)


def test_external_data_in_a_folder_below(tmp_path, model):
    weight = numpy_helper.to_array(model.graph.initializer[0])
    path = external_model(tmp_path, model, "weights of it/ä.bin")
    (tmp_path / "weights of it").mkdir()
    (tmp_path / "w.bin").rename(tmp_path / "weights of it/ä.bin")
    np.testing.assert_array_equal(array(load.load(path).graph.initializer[0]), weight)


def test_external_data_is_read(tmp_path, model):
    weight = numpy_helper.to_array(model.graph.initializer[0])
    path = external_model(tmp_path, model, "w.bin")
    source = load.read(path)
    assert source.external
    np.testing.assert_array_equal(array(source.model.graph.initializer[0]), weight)


@pytest.mark.parametrize("location", ["../w.bin", "a/../../w.bin", "/etc/passwd", ""])
def test_data_outside_the_folder_is_refused(tmp_path, model, location):
    (tmp_path / "w.bin").write_bytes(bytes(100000))
    path = external_model(tmp_path / "inner", model, location)
    with pytest.raises(ExternalDataError, match="outside the model's folder"):
        load.load(path)


@posix
def test_a_link_out_of_the_folder_is_refused(tmp_path, model):
    path = external_model(tmp_path / "inner", model, "w.bin")
    (tmp_path / "inner/w.bin").rename(tmp_path / "w.bin")
    (tmp_path / "inner/w.bin").symlink_to(tmp_path / "w.bin")
    with pytest.raises(ExternalDataError, match="outside the model's folder"):
        load.load(path)


@posix
def test_a_linked_model_finds_its_data_where_it_really_is(tmp_path, model):
    path = external_model(tmp_path / "store", model, "w.bin")
    link = tmp_path / "link.onnx"
    link.symlink_to(path)
    assert load.read(link).external


def test_missing_data_is_named(tmp_path, model):
    path = external_model(tmp_path, model, "weights/w.bin")
    with pytest.raises(ExternalDataError, match=r"'w'.*no such file"):
        load.load(path)


@pytest.mark.parametrize("entries", [{"offset": 1 << 20}, {"length": 1 << 30}, {"offset": -4}])
def test_data_that_is_too_short(tmp_path, model, entries):
    path = external_model(tmp_path, model, "w.bin", **entries)
    with pytest.raises(ExternalDataError, match="wants bytes"):
        load.load(path)


def test_data_that_does_not_fit_the_dimensions(tmp_path, model):
    path = external_model(tmp_path, model, "w.bin", length=16)
    with pytest.raises(ExternalDataError, match="needs 24576 bytes"):
        load.load(path)


# Large files


@pytest.mark.usefixtures("lazy")
@pytest.mark.parametrize("external", [False, True])
def test_large_weights_stay_on_disk_and_come_back_whole(tmp_path, model, external):
    save.save(model, tmp_path / "in.onnx", external=external)
    source = load.read(tmp_path / "in.onnx")
    weight = source.model.graph.initializer[0]
    assert not weight.raw_data
    np.testing.assert_array_equal(array(weight), array(model.graph.initializer[0]))
    save.save(source.model, tmp_path / "out.onnx", external=source.external)
    written = onnx.load(tmp_path / "out.onnx").graph.initializer[0]
    assert written.raw_data == model.graph.initializer[0].raw_data
    onnx.checker.check_model(str(tmp_path / "out.onnx"))


def test_a_tensor_shared_by_name_of_its_data_is_written_once(tmp_path, model, lazy):
    second = model.graph.initializer.add()
    second.CopyFrom(model.graph.initializer[0])
    second.name = "w2"
    path = external_model(tmp_path, model, "w.bin")
    set_external(model.graph.initializer[1], "w.bin", 0, 24576)
    path.write_bytes(model.SerializeToString())
    save.save(load.load(path), tmp_path / "out.onnx", external=True)
    (data,) = tmp_path.glob("out.onnx.*.data")
    assert data.stat().st_size == 24576


# Writing


@pytest.mark.parametrize("name", ["m.onnx", "ä ö 模型.onnx", "[a]*.onnx"])
def test_a_model_survives_the_disk(tmp_path, model, name):
    for external in (False, True):
        save.save(model, tmp_path / name, external=external)
        assert same(load.load(tmp_path / name), model)


def test_old_data_goes_when_the_new_model_is_in_place(tmp_path, model):
    path = tmp_path / "m.onnx"
    save.save(model, path, external=True)
    other = tiny.fc(user=64, item=32, hidden=64, seed=1)
    save.save(other, path, external=True)
    assert len(list(tmp_path.iterdir())) == 2
    assert same(load.load(path), other)


def test_a_discarded_model_leaves_nothing(tmp_path, model):
    with save.stage(model, tmp_path / "m.onnx", external=True) as staged:
        assert same(load.load(staged.path), model)
    assert not list(tmp_path.iterdir())


@posix
def test_a_link_is_written_through(tmp_path, model):
    (tmp_path / "real").mkdir()
    link = tmp_path / "m.onnx"
    link.symlink_to(tmp_path / "real/m.onnx")
    save.save(model, link)
    assert link.is_symlink()
    assert same(load.load(tmp_path / "real/m.onnx"), model)


@posix
def test_permissions_are_as_usual_and_kept(tmp_path, model):
    path = tmp_path / "m.onnx"
    save.save(model, path)
    (tmp_path / "plain").touch()
    assert path.stat().st_mode == (tmp_path / "plain").stat().st_mode
    path.chmod(0o640)
    save.save(model, path)
    assert path.stat().st_mode & 0o777 == 0o640


def test_a_folder_in_the_way(tmp_path, model):
    with pytest.raises(OutputInTheWay, match="is a folder"):
        save.save(model, tmp_path)


def test_no_folder_to_write_to(tmp_path, model):
    with pytest.raises(WriteError, match="no folder"):
        save.save(model, tmp_path / "no/m.onnx")


@pytest.mark.parametrize("external", [False, True])
def test_a_full_disk_leaves_the_old_file(tmp_path, model, monkeypatch, external):
    path = tmp_path / "m.onnx"
    path.write_bytes(b"old")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(WriteError, match="No space left"):
        save.save(model, path, external=external)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.EROFS, "the disk is read-only"),
        (errno.EACCES, "may not write"),
        (errno.EDQUOT, "quota"),
        (errno.ENAMETOOLONG, "shorter name"),
    ],
)
def test_a_folder_that_takes_no_files_leaves_the_old_one(tmp_path, model, monkeypatch, number, words):
    path = tmp_path / "m.onnx"
    path.write_bytes(b"old")

    def refused(*_: object, **__: object) -> str:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(tempfile, "mkdtemp", refused)
    with pytest.raises(WriteError, match=words):
        save.save(model, path)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@posix
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_device_is_no_place_for_a_model(model):
    with pytest.raises(WriteError):
        save.save(model, "/dev/full/m.onnx")


@posix
@pytest.mark.skipif(hasattr(os, "geteuid") and os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission(tmp_path, model):
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(WriteError, match="Permission denied"):
            save.save(model, tmp_path / "m.onnx")
    finally:
        tmp_path.chmod(0o700)


def test_a_model_without_large_weights_has_no_data_file(tmp_path):
    save.save(tiny.fc(), tmp_path / "m.onnx", external=True)
    assert [each.name for each in tmp_path.iterdir()] == ["m.onnx"]


def _write_forever(path: str, seeds: list[int]) -> None:
    models = [tiny.fc(user=64, item=32, hidden=64, seed=seed) for seed in seeds]
    while True:
        for index, model in enumerate(models):
            save.save(model, path, external=index % 2 == 1)


def _seed_of(path: Path) -> int:
    found = load.load(path)
    for seed in range(4):
        if same(found, tiny.fc(user=64, item=32, hidden=64, seed=seed)):
            return seed
    raise AssertionError("the file is a mix of two")


@posix
def test_a_kill_leaves_the_old_or_the_new_model(tmp_path):
    path = tmp_path / "m.onnx"
    save.save(tiny.fc(user=64, item=32, hidden=64), path)
    context = multiprocessing.get_context("fork")
    rng = random.Random(0)
    found: Counter[str] = Counter()
    before = 0
    for _ in range(KILLS):
        writer = context.Process(target=_write_forever, args=(str(path), [0, 1]))
        writer.start()
        time.sleep(rng.uniform(0.0, 0.05))
        os.kill(writer.pid, signal.SIGKILL)
        writer.join()
        seed = _seed_of(path)
        found["the same model as before" if seed == before else "the other model"] += 1
        found["killed while a model was half written"] += any(tmp_path.glob(".*"))
        before = seed
    print(f"{KILLS} kills: {dict(found)}")
    assert found["killed while a model was half written"]
    save.save(tiny.fc(user=64, item=32, hidden=64), path)
    assert not list(tmp_path.glob("*.tmp"))
    assert not list(tmp_path.glob(".*"))


@posix
def test_two_runs_on_one_output(tmp_path):
    path = tmp_path / "m.onnx"
    context = multiprocessing.get_context("fork")
    save.save(tiny.fc(user=64, item=32, hidden=64), path)
    writers = [
        context.Process(target=_write_forever, args=(str(path), seeds))
        for seeds in ([0, 1], [2, 3])
    ]
    for writer in writers:
        writer.start()
    try:
        for _ in range(20):
            time.sleep(0.01)
            # The other writer may replace both files while they are read here.
            for _attempt in range(20):
                try:
                    _seed_of(path)
                    break
                except ExternalDataError:
                    continue
            else:
                pytest.fail("the data of the model is gone")
    finally:
        for writer in writers:
            os.kill(writer.pid, signal.SIGKILL)
            writer.join()
    _seed_of(path)


def test_a_pipe_is_not_replaced(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(OutputInTheWay, match="a device or a pipe"):
        save.check_target(pipe)
    assert not pipe.is_file()
