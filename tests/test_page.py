"""The HTML report in a headless browser: it draws, answers clicks, and stays usable when large."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import mari_onnx
from benchmarks import scale
from mari_onnx.report.terminal import summary_line, total_rows
from mari_onnx.sides.resolve import Sides
from tests.test_report import leaving, model, normal

MODELS = Path(__file__).parents[1] / "models"
BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
DRIVER = shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(
    not (BROWSER and DRIVER), reason="no chromium with chromedriver is installed"
)


@pytest.fixture(scope="module")
def browser():
    from selenium import webdriver
    from selenium.webdriver.chrome.options import Options
    from selenium.webdriver.chrome.service import Service

    options = Options()
    options.binary_location = BROWSER
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    # No sandbox: tests run as root in containers; the pages are our own.
    for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(flag)
    options.add_argument("--window-size=1500,950")
    driver = webdriver.Chrome(service=Service(DRIVER), options=options)
    yield driver
    driver.quit()


@pytest.fixture
def show(browser, tmp_path):
    """Opens the page of a rewrite from disk; fails where the console had anything to say."""

    def opened(done: mari_onnx.Optimized):
        path = tmp_path / "page.html"
        path.write_text(done.html(), "utf-8")
        browser.get(path.as_uri())
        return browser

    yield opened
    assert browser.get_log("browser") == []


def nodes(browser, graph: str):
    return browser.find_elements("css selector", f"#{graph} .node")


def details(browser) -> str:
    return browser.find_element("id", "details").text


def press(browser, element) -> None:
    browser.execute_script(
        "arguments[0].dispatchEvent(new MouseEvent('click', {bubbles: true}))", element
    )


def find(browser, text: str) -> None:
    """Types into the search box and goes to the first match."""
    from selenium.webdriver.common.keys import Keys

    box = browser.find_element("id", "search")
    box.clear()
    box.send_keys(text, Keys.ENTER)


def test_both_graphs_are_drawn_and_a_click_tells_the_reason(show):
    done = mari_onnx.optimize(MODELS / "din.onnx", check=False)
    page = show(done)
    assert nodes(page, "before")
    assert nodes(page, "after")
    page.find_element("id", "open").click()
    one = next(
        each
        for each in nodes(page, "before")
        if each.find_element("tag name", "title").get_attribute("textContent") == "node_MatMul_23"
    )
    press(page, one)
    assert "chosen" in one.get_attribute("class")
    said = details(page)
    assert "node_MatMul_23" in said
    assert "split: its user part runs once per request" in said
    assert "[N, 16, 64]" in said
    assert page.find_element("id", "reason").text
    assert page.find_elements("css selector", "#after .twin")


def test_the_totals_are_those_of_the_report(show):
    done = mari_onnx.optimize(MODELS / "mmoe.onnx", check=False)
    page = show(done)
    script = "return [...document.querySelectorAll('#totals tr')].map((r) => [...r.cells].map((c) => c.textContent))"
    shown = [tuple(cells) for cells in page.execute_script(script)]
    assert shown[1:] == total_rows(done.report)
    assert page.find_element("id", "summary").text == summary_line(done.report)


def test_a_node_left_links_to_what_stopped_it(show):
    source = model(
        "h = MatMul(u, V) c = Concat<axis=1>(h, x) s = CumSum(c, one) y = Relu(s)",
        V=normal(30, 20),
        one=np.array(1, np.int64),
    )
    page = show(leaving(source, "s"))
    find(page, "y relu")
    assert "CumSum s before it runs on all N rows" in page.find_element("id", "reason").text
    page.find_element("css selector", "#reason button").click()
    assert details(page).startswith("s\n")


def test_groups_open_and_fold(show):
    page = show(mari_onnx.optimize(MODELS / "onetrans.onnx", check=False))
    page.find_element("id", "fold").click()
    few = len(nodes(page, "before"))
    group = page.find_element("css selector", "#before .node.group")
    key = group.get_attribute("data-open")
    press(page, group)
    assert len(nodes(page, "before")) > few
    press(page, page.find_element("css selector", f'#before [data-fold="{key}"]'))
    assert len(nodes(page, "before")) == few


def test_two_thousand_nodes_start_folded_and_any_can_be_found(show):
    page = show(mari_onnx.optimize(chain(500), Sides({"u": "user", "x": "item"}), check=False))
    assert len(nodes(page, "before")) + len(nodes(page, "after")) <= 80
    find(page, "mm_387")
    assert details(page).startswith("mm_387")
    assert page.find_elements("css selector", "#before .node.chosen")
    page.find_element("id", "open").click()
    assert 300 < len(nodes(page, "before")) + len(nodes(page, "after")) <= 700


def test_groups_open_only_as_far_as_their_edges_can_be_laid_out(show):
    # Outputs of two Splits go to all of the graph: hundreds of nodes with such edges would take minutes.
    source = scale.towers(2000)
    page = show(mari_onnx.optimize(source, Sides({"user": "user", "item": "item"}), check=False))
    page.find_element("id", "open").click()
    assert 80 < len(nodes(page, "before")) + len(nodes(page, "after")) < 300


def test_light_and_dark(show):
    page = show(mari_onnx.optimize(MODELS / "din.onnx", check=False))
    paper = "return getComputedStyle(document.body).backgroundColor"
    first = page.execute_script(paper)
    page.find_element("id", "theme").click()
    assert page.execute_script(paper) != first


def floats(name: str, width: int) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", width])


def made(
    body: list[onnx.NodeProto], output: str, weights: dict[str, np.ndarray]
) -> onnx.ModelProto:
    graph = helper.make_graph(
        body,
        "g",
        [floats("u", 10), floats("x", 6)],
        [floats(output, 16)],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def chain(blocks: int) -> onnx.ModelProto:
    """`4 * blocks + 1` nodes without any module names."""
    rng = np.random.default_rng(0)
    weights: dict[str, np.ndarray] = {}
    body = [helper.make_node("Concat", ["u", "x"], ["h0"], "join", axis=1)]
    for i in range(blocks):
        weights[f"w{i}"] = rng.standard_normal((16, 16)).astype(np.float32) / 4
        weights[f"b{i}"] = rng.standard_normal(16).astype(np.float32)
        body += [
            helper.make_node("MatMul", [f"h{i}", f"w{i}"], [f"m{i}"], f"mm_{i}"),
            helper.make_node("Add", [f"m{i}", f"b{i}"], [f"a{i}"], f"bias_{i}"),
            helper.make_node("Relu", [f"a{i}"], [f"r{i}"], f"relu_{i}"),
            helper.make_node("Add", [f"r{i}", f"h{max(i - 3, 0)}"], [f"h{i + 1}"], f"skip_{i}"),
        ]
    return made(body, f"h{blocks}", weights)
