"""What the report says about nodes that are left, and that all its forms tell the same figures."""

from __future__ import annotations

import json
import re

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser

import mari_onnx
from mari_onnx import api, engine
from mari_onnx.api.optimized import finished
from mari_onnx.cli.main import run
from mari_onnx.report.figures import change, quantity
from mari_onnx.report.kinds import once
from mari_onnx.sides.resolve import Sides

UX = Sides({"u": "user", "x": "item"})


def model(text: str, **weights: np.ndarray) -> onnx.ModelProto:
    """A model from the text form of its graph; nodes are named after their outputs."""
    made = parser.parse_model(
        f'<ir_version: 8, opset_import: ["" : 17, "own" : 1]> g (float[N,30] u, float[N,5] x) '
        f"=> (float[N,k] y) {{ {text} }}"
    )
    for node in made.graph.node:
        node.name = node.output[0]
    made.graph.initializer.extend(numpy_helper.from_array(v, k) for k, v in weights.items())
    return made


def normal(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


def leaving(source: onnx.ModelProto, name: str) -> api.Optimized:
    """The rewrite in which the node of that name is what no rule could take apart."""
    options = engine.Options(skip=frozenset({name}))
    return finished(api.as_source(source), UX, options, engine.rewrite(source, UX, options))


@pytest.fixture(scope="module")
def stopped() -> api.Optimized:
    """CumSum along the columns is left alone, so that everything after it has N rows."""
    source = model(
        "h = MatMul(u, V) c = Concat<axis=1>(h, x) s = CumSum(c, one) m = MatMul(s, W) "
        "r = Relu(m) i = Relu(x) y = Concat<axis=1>(r, i)",
        V=normal(30, 20),
        W=normal(25, 4),
        one=np.array(1, np.int64),
    )
    done = leaving(source, "s")
    done.measure()
    return done


def node(done: api.Optimized, name: str):
    return next(each for each in done.report.nodes if each.name == name)


def test_a_node_left_names_the_operator_that_stopped_it(stopped):
    assert node(stopped, "s").reason
    assert node(stopped, "s").stopped_by is None
    assert node(stopped, "m").stopped_by == "s"
    assert node(stopped, "r").stopped_by == "s"


def test_nodes_that_lose_nothing_are_stopped_by_nothing(stopped):
    for name in ("h", "c", "i"):
        assert node(stopped, name).stopped_by is None


def test_the_stop_counts_what_is_left_after_it(stopped):
    (stop,) = stopped.report.stops
    assert (stop.name, stop.op) == ("s", "CumSum")
    assert stop.after == sum(each.stopped_by == "s" for each in stopped.report.nodes) >= 2


def test_every_node_with_redundant_work_left_says_why(stopped):
    left = stopped.report.residual["after"]
    assert left["redundant_flops"] > 0
    found = {each["source"]: each["why"] for each in left["nodes"]}
    reason = node(stopped, "s").reason
    assert found["s"] == reason
    assert found["m"] == f"CumSum 's' before it runs on all N rows: {reason}"
    assert all(found.values())


def test_the_source_says_what_becomes_of_its_redundant_work(stopped):
    before = stopped.report.residual["before"]
    (product,) = [each for each in before["nodes"] if each["name"] == "h"]
    assert product["why"] == "runs once per request in the output"
    assert product["redundant_flops"] == 2 * before["candidates"] * 30 * 20
    assert stopped.report.residual["after"]["share"] < before["share"]


def test_an_output_is_measured_as_it_is(stopped, tmp_path):
    path = tmp_path / "out.onnx"
    stopped.save(path)
    again = mari_onnx.inspect(path, measure=True)
    found, left = again.residual["before"], stopped.report.residual["after"]
    assert again.residual["after"] is None
    assert found["share"] == pytest.approx(left["share"])
    assert all(each["why"] for each in found["nodes"])


def test_a_clean_rewrite_leaves_nothing():
    source = model("c = Concat<axis=1>(u, x) y = MatMul(c, W)", W=normal(35, 8))
    report = mari_onnx.inspect(source, UX, measure=True)
    assert report.residual["before"]["share"] == pytest.approx(30 / 35, abs=1e-6)
    assert report.residual["after"]["share"] == 0
    assert report.residual["after"]["nodes"] == []
    assert report.stops == []


def test_figures_of_functions_are_counted():
    source = model("c = Concat<axis=1>(u, x) y = own.Product(c, W)", W=normal(35, 8))
    source.functions.append(
        onnx.helper.make_function(
            "own",
            "Product",
            ["a", "b"],
            ["o"],
            [onnx.helper.make_node("MatMul", ["a", "b"], ["o"], "product")],
            [onnx.helper.make_opsetid("", 17)],
        )
    )
    report = mari_onnx.inspect(source, UX)
    assert report.before.flops == 2 * 35 * 8
    assert sum(each.flops or 0 for each in report.nodes) == report.before.flops


@pytest.fixture
def written(tmp_path):
    """A model in a file, named as the terminal will show it."""
    path = tmp_path / "m.onnx"
    onnx.save(model("c = Concat<axis=1>(u, x) y = MatMul(c, W)", W=normal(35, 64)), path)
    return path


def page_data(text: str):
    (found,) = re.findall(r'<script id="data" type="application/json">(.*?)</script>', text)
    return json.loads(found)


def test_terminal_json_and_page_tell_the_same_figures(written, tmp_path, capsys):
    command = ["inspect", str(written), "--user", "u", "--item", "x", "--measure"]
    html = tmp_path / "page.html"
    assert run([*command, "--html", str(html)]) == 0
    said = capsys.readouterr().out
    assert run([*command, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    page = page_data(html.read_text())
    before, after = told["before"], told["after"]
    for name, key in (
        ("FLOPs per candidate", "flops_per_candidate"),
        ("bytes per candidate", "bytes_per_candidate"),
    ):
        row = [name, quantity(before[key]), quantity(after[key]), change(before[key], after[key])]
        assert row in page["totals"]
        assert re.search(r" +".join(map(re.escape, row)), said)
    sizes = [str(before["nodes"]), str(after["nodes"]), change(before["nodes"], after["nodes"])]
    assert ["nodes", *sizes] in page["totals"]
    assert ["  of which once per request", str(before["once_nodes"]), str(after["once_nodes"]), ""] in page["totals"]
    assert f"{after['once_nodes']} of the output's {after['nodes']} nodes run once per request" in said
    assert page["summary"] in said
    assert page["residual"] == told["residual"]
    share = told["residual"]["before"]["share"]
    assert re.search(rf"residual share of FLOPs +{share:.1%}", said)
    for graph, total in (("before", before), ("after", after)):
        flops = sum(page[graph]["flops"])
        assert flops == pytest.approx(total["flops_per_candidate"], abs=1)
        assert len(page[graph]["names"]) == total["nodes"]


def test_what_runs_once_a_request_has_one_row_and_reads_no_more():
    source = model(
        "h = MatMul(u, V) a = Relu(h) c = Concat<axis=1>(a, x) m = MatMul(c, W) "
        "top = ReduceMax<axes=[0], keepdims=1>(x) z = Sub(x, top) y = Concat<axis=1>(m, z)",
        V=normal(30, 20),
        W=normal(25, 4),
    )
    done = mari_onnx.optimize(source, UX, check=False)
    alone = once(done.model.graph, done.rewrite.out_shapes, done.report.inputs)
    found = {each.name for each, single in zip(done.model.graph.node, alone, strict=True) if single}
    assert {"a/Relu"} <= found
    assert not {each for each in found if each.startswith(("top", "z/", "y"))}
    assert done.report.before.once_nodes == 0
    assert done.report.after.once_nodes == len(found)
    assert 0 < done.report.after.once_flops < done.report.after.flops
    assert mari_onnx.inspect(done.model).after == done.report.after


def test_work_of_the_item_alone_is_counted():
    """``x W`` of a tower; ``u V`` is the user's, and their product is of both."""
    source = model("a = MatMul(x, W) b = MatMul(u, V) y = Mul(a, b)", W=normal(5, 8), V=normal(30, 8))
    report = mari_onnx.optimize(source, UX, check=False).report
    for each in (report.before, report.after):
        assert (each.item_nodes, each.item_flops) == (1, 2 * 5 * 8)
    assert report.to_dict()["after"]["item_flops_per_candidate"] == 2 * 5 * 8


def test_optimize_writes_the_page_beside_the_report(written, tmp_path, capsys):
    out, html = tmp_path / "o.onnx", tmp_path / "page.html"
    tags = ["--user", "u", "--item", "x"]
    assert run(["optimize", str(written), str(out), *tags, "--html", str(html)]) == 0
    assert page_data(html.read_text())["after"]["names"]
    assert run(["optimize", str(written), str(out), *tags, "--html", str(written)]) == 2
    assert "would overwrite IN" in capsys.readouterr().err


def test_the_page_needs_nothing_but_itself(written):
    text = mari_onnx.optimize(written, {"u": "user", "x": "item"}, check=False).html()
    assert not re.search(r"(src|href)=[\"'](?!data:|#)", text)
    assert "default-src 'none'" in text


def test_names_cannot_break_out_of_the_page(tmp_path):
    source = model("c = Concat<axis=1>(u, x) y = MatMul(c, W)", W=normal(35, 64))
    source.graph.node[1].name = "</script><script>alert(1)</script>{{script}}"
    done = mari_onnx.optimize(source, UX, check=False)
    text = done.html()
    assert "</script><script>alert" not in text
    names = page_data(text)["before"]["names"]
    assert source.graph.node[1].name in names
