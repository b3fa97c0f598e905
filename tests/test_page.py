"""The HTML report in a headless browser: it draws, answers clicks and keys, and stays usable when large."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mari_onnx
from benchmarks import scale
from benchmarks.page import ITEM, USER, browser, opened, ranker
from mari_onnx.report.terminal import summary_line, total_rows
from mari_onnx.sides.resolve import Sides
from tests.test_report import leaving, model, normal

MODELS = Path(__file__).parents[1] / "models"
RANKER = {**dict.fromkeys((*USER, "history"), "user"), **dict.fromkeys(ITEM, "item")}
CHROMIUM = any(map(shutil.which, ("chromium", "chromium-browser", "google-chrome")))
pytestmark = pytest.mark.skipif(
    not (CHROMIUM and shutil.which("chromedriver")), reason="no chromium with chromedriver is installed"
)


@pytest.fixture(scope="module")
def driver():
    with browser() as found:
        yield found


@pytest.fixture
def show(driver, tmp_path):
    """Opens the page of a rewrite from disk; fails where the console had anything to say."""

    def shown(done: mari_onnx.Optimized | str, theme: str = "light"):
        path = tmp_path / "page.html"
        path.write_text(done if isinstance(done, str) else done.html(), "utf-8")
        opened(driver, path, theme)
        return driver

    yield shown
    assert driver.get_log("browser") == []


@pytest.fixture(scope="module")
def mmoe() -> str:
    return mari_onnx.optimize(MODELS / "mmoe.onnx", check=False).html()


@pytest.fixture(scope="module")
def large() -> str:
    return mari_onnx.optimize(ranker(10_000), RANKER, check=False).html()


@pytest.fixture(scope="module")
def unnamed() -> str:
    return mari_onnx.optimize(ranker(1000, named=False), RANKER, check=False).html()


def boxes(page, graph: str):
    return page.find_elements("css selector", f"#{graph} .box:not(.head)")


def box(page, graph: str, name: str):
    """The box of a node that is visible."""
    labels = {each: each.get_attribute("aria-label").split(", ")[0] for each in boxes(page, graph)}
    found = [each for each, label in labels.items() if label.endswith(f" {name}")]
    assert len(found) == 1
    return found[0]


def details(page) -> str:
    return page.find_element("id", "details").text


def press(page, element) -> None:
    page.execute_script("arguments[0].dispatchEvent(new MouseEvent('click', {bubbles: true}))", element)


def find(page, text: str) -> None:
    search = page.find_element("id", "search")
    search.clear()
    search.send_keys(text + "\n")


def send(page, *keys: str) -> None:
    from selenium.webdriver.common.action_chains import ActionChains

    ActionChains(page).send_keys(*keys).perform()


def focused(page) -> str | None:
    return page.execute_script("return document.activeElement.dataset.id ?? document.activeElement.id")


def test_a_node_tells_of_itself_and_of_its_counterparts(show, mmoe):
    page = show(mmoe)
    find(page, "node_linear ")
    said = details(page)
    assert said.splitlines()[1] == "node_linear"
    assert "split: its user part runs once per request" in said
    assert "[N, 64]" in said
    assert "Predicted time at 500 candidates" in said
    assert "the candidate's part" in page.find_element("id", "reason").text
    assert "chosen" in box(page, "before", "node_linear").get_attribute("class")
    assert page.find_elements("css selector", "#after .twin")


def test_the_totals_are_those_of_the_report(show):
    done = mari_onnx.optimize(MODELS / "mmoe.onnx", check=False)
    page = show(done)
    script = "return [...document.querySelectorAll('#totals tr')].map((r) => [...r.cells].map((c) => c.textContent))"
    shown = [tuple(cells) for cells in page.execute_script(script)]
    assert shown[1:] == total_rows(done.report)
    page.find_element("css selector", "#more summary").click()
    assert page.find_element("id", "summary").text == summary_line(done.report)
    fewer = round(100 * (1 - done.report.after.flops / done.report.before.flops))
    assert f"with {fewer}% fewer FLOPs per candidate" in page.find_element("id", "headline").text.replace("\n", " ")


def test_bars_are_as_long_as_the_work_is(show):
    done = mari_onnx.optimize(MODELS / "mmoe.onnx", check=False)
    page = show(done)
    script = """return [...document.querySelectorAll('#chart .total .strip')].map((strip) =>
        [...strip.children].reduce((all, each) => all + each.getBoundingClientRect().width, 0) / strip.clientWidth)"""
    before, after = page.execute_script(script)
    assert before == pytest.approx(1, abs=0.02)
    assert after == pytest.approx(done.report.after.flops / done.report.before.flops, abs=0.02)
    page.find_element("css selector", "#unit [data-unit=micros]").click()
    assert page.execute_script(script)[1] != pytest.approx(after, abs=1e-4)
    assert "s →" in page.find_element("css selector", "#chart .total .numbers").text  # seconds


def test_rows_of_what_is_left_lead_to_their_nodes(show):
    done = mari_onnx.optimize(MODELS / "mmoe.onnx", check=False)
    page = show(done)
    shares = [row.text for row in page.find_elements("css selector", "#why .portion > b")]
    assert float(shares[0].rstrip("%")) >= float(shares[1].rstrip("%"))
    first = done.report.left[0]
    assert first.why.replace("'cat'", "cat") in page.find_element("css selector", "#why .text").text
    page.find_element("css selector", "#why .nodes li .link").click()
    assert details(page).splitlines()[1] == first.node
    assert page.find_elements("css selector", "#before .chosen")
    assert page.execute_script("return document.getElementById('graphs').getBoundingClientRect().top") < 300


def test_a_layer_leads_to_its_group(show, mmoe):
    page = show(mmoe)
    find(page, "node_linear ")
    page.find_element("id", "fold").click()
    layer = page.find_element("xpath", "//*[@id='chart']//button[.='experts.0']")
    page.execute_script("arguments[0].click()", layer)
    heads = [each.get_attribute("aria-label") for each in page.find_elements("css selector", "#after .head")]
    assert "experts.0, open" in heads


def test_a_node_left_links_to_what_stopped_it(show):
    source = model(
        "h = MatMul(u, V) c = Concat<axis=1>(h, x) s = CumSum(c, one) y = Relu(s)",
        V=normal(30, 20),
        one=np.array(1, np.int64),
    )
    page = show(leaving(source, "s"))
    find(page, "y relu")
    assert "CumSum s before it runs on all N rows" in page.find_element("id", "reason").text
    page.find_element("css selector", "#reason a").click()
    assert details(page).splitlines()[1] == "s"


def test_a_link_leads_to_a_node(show, driver, tmp_path, large):
    page = show(large)
    find(page, "/history/layers.77/attention/Softmax")
    link = page.current_url
    assert link.endswith("#before/%2Fhistory%2Flayers.77%2Fattention%2FSoftmax")
    page.get("about:blank")
    page.get(link)
    assert "/history/layers.77/attention/Softmax" in details(page)
    assert page.find_elements("css selector", "#before .chosen")
    find(page, "/head/score/Add")
    assert page.find_element("css selector", "#details h3").text == "/head/score/Add"
    page.back()
    assert page.find_element("css selector", "#details h3").text.endswith("layers.77/attention/Softmax")


def test_groups_open_and_fold(show):
    page = show(mari_onnx.optimize(MODELS / "onetrans.onnx", check=False))
    page.find_element("id", "fold").click()
    few = len(boxes(page, "before"))
    group = page.find_element("css selector", "#before .box.group")
    key = group.get_attribute("data-id")
    press(page, group)
    assert len(boxes(page, "before")) > few
    press(page, page.find_element("css selector", f'#before .head[data-id="{key}"]'))
    assert len(boxes(page, "before")) == few


GEOMETRY = Path(__file__).with_name("page_geometry.js").read_text()


def check_drawing(page, graph: str) -> tuple[float, float]:
    """No box covers another, frames hold boxes whole or not at all, texts are within boxes; width and height."""
    found: dict[str, Any] = page.execute_script(GEOMETRY, graph)
    places = np.array([each["box"] for each in found["list"]])
    frames = np.array(found["frames"]).reshape(-1, 4)
    assert len(places)
    slack = 1.5 * found["scale"]
    for k, (left, top, right, bottom) in enumerate(places):
        others = np.delete(places, k, axis=0)
        apart = (others[:, 0] >= right - slack) | (others[:, 2] <= left + slack)
        apart |= (others[:, 1] >= bottom - slack) | (others[:, 3] <= top + slack)
        assert apart.all(), found["list"][k]["id"]
        inside = (frames[:, 0] <= left) & (frames[:, 2] >= right) & (frames[:, 1] <= top) & (frames[:, 3] >= bottom)
        outside = (frames[:, 0] >= right - slack) | (frames[:, 2] <= left + slack)
        outside |= (frames[:, 1] >= bottom - slack) | (frames[:, 3] <= top + slack)
        assert (inside | outside).all(), found["list"][k]["id"]
    for each in found["list"]:
        assert all(min(text[:2]) > 1.5 * found["scale"] for text in each["texts"]), each["id"]
    return tuple((places.max(axis=0)[2:] - places.min(axis=0)[:2]) / found["scale"])


@pytest.mark.parametrize("opening", [False, True])
@pytest.mark.parametrize("which", ["mmoe", "unnamed", "large"])
def test_drawings_are_tidy_at_any_size(show, request, which, opening):
    page = show(request.getfixturevalue(which))
    if opening:
        page.find_element("id", "open").click()
    for graph in ("before", "after"):
        count = len(boxes(page, graph))
        assert count <= (320 if opening else 48)
        width, height = check_drawing(page, graph)
        assert width > 0.35 * height  # no strip


def test_a_long_chain_is_no_strip(show):
    layers = " ".join(f"a{k + 1} = {'Relu' if k % 3 else 'Sigmoid' if k % 2 else 'Tanh'}(a{k})" for k in range(34))
    source = model(f"h = MatMul(u, V) c = Concat<axis=1>(h, x) a0 = Neg(c) {layers} y = Neg(a34)", V=normal(30, 20))
    page = show(mari_onnx.optimize(source, {"u": "user", "x": "item"}, check=False))
    page.find_element("id", "open").click()
    width, height = check_drawing(page, "before")
    assert width > 0.6 * height


def test_ten_thousand_nodes_start_folded_and_any_can_be_found(show, large):
    page = show(large)
    assert len(boxes(page, "before")) + len(boxes(page, "after")) <= 96
    labels = [each.get_attribute("aria-label") for each in boxes(page, "before")]
    assert any("× history.layers.0–" in label for label in labels)
    assert any("× mixer.layers.0–" in label for label in labels)
    find(page, "/mixer/layers.100/mlp/Relu")
    assert page.find_element("css selector", "#details h3").text == "/mixer/layers.100/mlp/Relu"
    assert page.find_elements("css selector", "#before .box.chosen")
    check_drawing(page, "before")


def test_repeated_blocks_without_names_are_folded(show, unnamed):
    page = show(unnamed)
    labels = [each.get_attribute("aria-label") for each in boxes(page, "before")]
    assert sum("17 × 29 nodes: " in label for label in labels) == 2


def test_groups_open_only_as_far_as_stays_readable(show):
    # Outputs of two Splits go to all of the graph.
    source = scale.towers(2000)
    page = show(mari_onnx.optimize(source, Sides({"user": "user", "item": "item"}), check=False))
    page.find_element("id", "open").click()
    assert 60 < len(boxes(page, "before")) + len(boxes(page, "after")) <= 640
    check_drawing(page, "before")


# ---- colours, the keyboard, paper
CONTRAST = Path(__file__).with_name("page_contrast.js").read_text()


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_contrast_of_all_texts_and_marks(show, mmoe, theme):
    page = show(mmoe, theme)
    find(page, "node_linear ")
    page.find_element("css selector", "#more summary").click()
    page.find_element("id", "help").click()
    page.find_element("id", "search").send_keys("x")
    said = page.execute_script(CONTRAST)
    assert len(said["found"]) > 200
    assert [each for each in said["found"] if each[0] < 4.5] == []
    assert len(said["marks"]) > 100
    assert [each for each in said["marks"] if each[0] < 3] == []


def test_light_and_dark(show, mmoe):
    page = show(mmoe)
    paper = "return getComputedStyle(document.body).backgroundColor"
    light = page.execute_script(paper)
    assert page.find_element("id", "theme").text == "Dark"
    page.find_element("id", "theme").click()
    dark = page.execute_script(paper)
    assert dark != light
    assert show(mmoe, "dark").execute_script(paper) == dark
    page.find_element("id", "theme").click()
    assert page.execute_script(paper) == light


def test_all_can_be_done_with_the_keyboard(show, mmoe):
    from selenium.webdriver.common.keys import Keys

    page = show(mmoe)
    send(page, "/")
    assert focused(page) == "search"
    send(page, "Concat", Keys.ARROW_DOWN)
    assert page.execute_script("return document.activeElement.closest('#matches') !== null")
    send(page, Keys.ENTER)
    assert details(page)
    assert page.execute_script("return document.activeElement.closest('svg') !== null")
    send(page, Keys.ESCAPE)
    assert not page.find_element("id", "details").is_displayed()
    before = focused(page)
    send(page, Keys.ARROW_UP)
    assert focused(page) != before
    # Exactly one box of each graph is met by Tab.
    for graph in ("before", "after"):
        assert len(page.find_elements("css selector", f"#{graph} .box[tabindex='0']")) == 1
    page.find_element("id", "fold").click()
    page.execute_script("document.querySelector('#before .box.group').focus()")
    count = len(boxes(page, "before"))
    send(page, Keys.ENTER)
    assert len(boxes(page, "before")) > count
    assert page.execute_script("return document.activeElement.matches('.head')")
    send(page, Keys.BACKSPACE)
    assert len(boxes(page, "before")) == count
    send(page, "f")
    assert page.execute_script("return document.body.classList.contains('whole')")
    send(page, Keys.ESCAPE)
    assert not page.execute_script("return document.body.classList.contains('whole')")
    send(page, "?")
    assert page.find_element("id", "keys").is_displayed()


def test_everything_that_can_be_pressed_has_a_name(show, mmoe):
    page = show(mmoe)
    find(page, "node_linear ")
    script = """return [...document.querySelectorAll("button, input, [role=button]")].filter((one) =>
        !(one.getAttribute("aria-label") || one.textContent.trim())).map((one) => one.outerHTML)"""
    assert page.execute_script(script) == []
    twice = """const ids = [...document.querySelectorAll("[id]")].map((one) => one.id);
        return ids.filter((id, k) => ids.indexOf(id) !== k)"""
    assert page.execute_script(twice) == []


def test_on_paper_both_graphs_are_whole(show, driver, mmoe):
    page = show(mmoe, "dark")
    page.find_element("css selector", "#which [data-which=after]").click()
    driver.execute_script("dispatchEvent(new Event('beforeprint'))")
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    try:
        assert not page.find_element("css selector", "nav").is_displayed()
        assert page.execute_script("return getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
        for graph in ("before", "after"):
            frame = page.find_element("css selector", f"#{graph} svg").rect
            for each in boxes(page, graph):
                assert each.rect["y"] >= frame["y"] - 1
                assert each.rect["y"] + each.rect["height"] <= frame["y"] + frame["height"] + 1
    finally:
        driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})
    driver.execute_script("dispatchEvent(new Event('afterprint'))")
    assert not page.find_element("id", "before").is_displayed()


def test_nothing_is_loaded_from_elsewhere(mmoe):
    outside = mmoe.split('<script id="data"')[0]
    assert "http" not in outside.replace("http-equiv", "")
    assert "default-src 'none'" in outside
