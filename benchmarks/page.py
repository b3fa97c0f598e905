"""The page of a rewrite in Chromium: how long it takes to open by the size of the model, and pictures of it.

Models of about 35, 1,000 and 10,000 nodes, with and without names of modules. Each page is opened several times; the
time is that from the navigation to the first graph being drawn, on the page's own clock. Busy is what the page's main
thread had of a processor for it, which does not depend on what else runs.
"""

from __future__ import annotations

import argparse
import base64
import statistics
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import onnx

from benchmarks.graphs import Graph
from benchmarks.tables import Section, Target

COMMAND = "python -m benchmarks.page"
NODES = (35, 1000, 10_000)
SECONDS = 2.0
WINDOW = (1500, 950)
HISTORY, WIDTH, HEADS, TOKENS = 8, 16, 2, 6
USER, ITEM = ("user_id", "age", "city"), ("item_id", "brand", "price_level")


class _Named(Graph):
    """A graph whose nodes are named after the module that they are in, as torch.onnx.export names them."""

    def __init__(self, named: bool) -> None:
        super().__init__()
        self.named, self.scope = named, list[str]()
        self._numbers: dict[str, int] = {}

    @contextmanager
    def module(self, *names: str) -> Iterator[None]:
        self.scope += names
        yield
        del self.scope[-len(names) :]

    def ops(self, op: str, *inputs: str, count: int, **attributes: object) -> list[str]:
        outputs = super().ops(op, *inputs, count=count, **attributes)
        name = "/".join(["", *self.scope, op])
        number = self._numbers[name] = self._numbers.get(name, -1) + 1
        self.nodes[-1].name = f"{name}_{number}" if number else name
        if not self.named:
            self.nodes[-1].name = f"n{len(self.nodes)}"
        return outputs

    def linear(self, x: str, wide: int, out: int) -> str:
        return self.op("Add", self.op("MatMul", x, self.weight(wide, out)), self.bias(out))

    def norm(self, x: str) -> str:
        return self.op("LayerNormalization", x, self.vector(WIDTH, 1.0), self.bias(WIDTH), axis=-1)


def ranker(nodes: int, named: bool = True) -> onnx.ModelProto:
    """A ranking model of about `nodes` nodes: the user's history and the candidate's tokens go through transformers.

    Half of the layers read the user alone, half user and candidate; 35 nodes is the least. named: whether nodes have
    the names of their modules.
    """
    g = _Named(named)
    users = [g.input(name, ["N"], onnx.TensorProto.INT64) for name in USER]
    items = [g.input(name, ["N"], onnx.TensorProto.INT64) for name in ITEM]
    seen = g.input("history", ["N", HISTORY], onnx.TensorProto.INT64)
    with g.module("embed"):
        rows = {}
        for name in (*users, *items, seen):
            with g.module(f"tables.{name}"):
                rows[name] = g.op("Gather", g.weight(50, WIDTH), name)
    layers = max(0, round((nodes - 35) / 58))
    with g.module("profile"):
        p = g.op("Concat", *(rows[name] for name in users), axis=1)
        for k, wide in enumerate((len(users) * WIDTH, 32)):
            with g.module(f"profile.{2 * k}"):
                p = g.linear(p, wide, 32)
            p = g.op("Relu", p)
        p = g.op("Mul", p, g.op("Sigmoid", p))
    x = rows[seen]
    for k in range(layers):
        with g.module("history", f"layers.{k}"):
            x = _layer(g, x, HISTORY)
    with g.module("pool"):
        x = g.op("ReduceMean", x, g.ints(1), keepdims=0)
        tokens = [g.op("Unsqueeze", rows[name], g.ints(1)) for name in (*users, *items)]
        h = g.op("Concat", *tokens, axis=1)
    for k in range(layers):
        with g.module("mixer", f"layers.{k}"):
            h = _layer(g, h, TOKENS)
    with g.module("head"):
        h = g.op("Reshape", h, g.ints(-1, TOKENS * WIDTH))
        h = g.op("Concat", p, x, h, axis=1)
        wide = 32 + (TOKENS + 1) * WIDTH
        for k, out in enumerate((64, 32)):
            with g.module(f"head.{2 * k}"):
                h = g.op("Relu", g.linear(h, wide, out))
            wide = out
        with g.module("score"):
            h = g.linear(h, wide, 1)
        g.op("Sigmoid", h)
    return g.model("score", ["N", 1])


def _layer(g: _Named, x: str, length: int) -> str:
    """A layer of a transformer, 29 nodes."""
    with g.module("norm1"):
        y = g.norm(x)
    with g.module("attention"):
        parts = []
        for name, order in (("q", (0, 2, 1, 3)), ("k", (0, 2, 3, 1)), ("v", (0, 2, 1, 3))):
            with g.module(name):
                part = g.linear(y, WIDTH, WIDTH)
            part = g.op("Reshape", part, g.ints(-1, length, HEADS, WIDTH // HEADS))
            parts.append(g.op("Transpose", part, perm=order))
        q, k, v = parts
        a = g.op("Softmax", g.op("Div", g.op("MatMul", q, k), g.vector(1, 2.0)), axis=-1)
        a = g.op("Transpose", g.op("MatMul", a, v), perm=(0, 2, 1, 3))
        a = g.op("Reshape", a, g.ints(-1, length, WIDTH))
        with g.module("out"):
            a = g.linear(a, WIDTH, WIDTH)
    x = g.op("Add", x, a)
    with g.module("norm2"):
        y = g.norm(x)
    with g.module("mlp"):
        with g.module("mlp.0"):
            y = g.linear(y, WIDTH, 2 * WIDTH)
        y = g.op("Relu", y)
        with g.module("mlp.2"):
            y = g.linear(y, 2 * WIDTH, WIDTH)
    return g.op("Add", x, y)


def write_page(model: onnx.ModelProto, path: Path) -> None:
    """The page of what `optimize` makes of a model of `ranker`, not checked."""
    import mari_onnx

    sides = {**dict.fromkeys((*USER, "history"), "user"), **dict.fromkeys(ITEM, "item")}
    path.write_text(mari_onnx.optimize(model, sides, check=False).html(), "utf-8")


@contextmanager
def browser(width: int = WINDOW[0], height: int = WINDOW[1]) -> Iterator[Any]:
    """Chromium without a window, by selenium."""
    import shutil

    from selenium import webdriver
    from selenium.webdriver.chrome.options import Options
    from selenium.webdriver.chrome.service import Service

    options = Options()
    found = map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))
    options.binary_location = next(filter(None, found), "")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    # No sandbox: this runs as root in containers; the pages are our own.
    for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"):
        options.add_argument(flag)
    options.add_argument(f"--window-size={width},{height}")
    driver = webdriver.Chrome(service=Service(shutil.which("chromedriver")), options=options)
    try:
        yield driver
    finally:
        driver.quit()


def opened(driver: Any, path: Path, theme: str = "light") -> float:
    """Opens a page anew; milliseconds until its first graph was drawn."""
    features = [{"name": "prefers-color-scheme", "value": theme}]
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    size = {"width": WINDOW[0], "height": WINDOW[1], "deviceScaleFactor": 1, "mobile": False}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    driver.get("about:blank")
    driver.get(path.absolute().as_uri())
    return float(driver.execute_script("return document.documentElement.dataset.drawn"))


def busy(driver: Any) -> float:
    """Milliseconds that the main thread of the page that is open was on a processor, from the navigation on."""
    found = driver.execute_cdp_cmd("Performance.getMetrics", {})["metrics"]
    return 1e3 * next(each["value"] for each in found if each["name"] == "TaskDuration")


def picture(driver: Any, path: Path, height: int | None = None) -> None:
    """What is shown now, as a PNG: the first `height` pixels of the page, or all of it."""
    width = driver.execute_script("return innerWidth")
    height = height or driver.execute_script("return document.documentElement.scrollHeight")
    clip = {"x": 0, "y": 0, "width": width, "height": height, "scale": 1}
    shot = driver.execute_cdp_cmd("Page.captureScreenshot", {"clip": clip, "captureBeyondViewport": True})
    path.write_bytes(base64.b64decode(shot["data"]))


def for_docs(folder: Path) -> None:
    """The pictures of docs/report.md: a sample model, a node of one, and a model of 10,000 nodes."""
    import mari_onnx

    models = Path(__file__).parents[1] / "models"
    with tempfile.TemporaryDirectory(prefix="mari-onnx-") as temporary, browser() as driver:
        path = Path(temporary, "page.html")
        path.write_text(mari_onnx.optimize(models / "mmoe.onnx", if_slower="warn").html(), "utf-8")
        opened(driver, path)
        picture(driver, folder / "page.png")
        path.write_text(mari_onnx.optimize(models / "bst.onnx").html(), "utf-8")
        opened(driver, path)
        for press in ("#whole", "#why .nodes li .link"):
            driver.execute_script("document.querySelector(arguments[0]).click()", press)
        picture(driver, folder / "page-node.png", WINDOW[1])
        write_page(ranker(NODES[-1]), path)
        opened(driver, path, "dark")
        picture(driver, folder / "page-large.png")
    for each in folder.glob("page*.png"):
        _smaller(each)


def _smaller(path: Path) -> None:
    """A picture in 256 colours, among them the rare ones."""
    from PIL import Image

    with Image.open(path) as image:
        few = image.convert("RGB").quantize(256, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
        few.save(path, optimize=True)


def section(nodes: Sequence[int] = NODES, rounds: int = 5, pictures: Path | None = None) -> Section:
    result = Section(
        "The page of a rewrite",
        "From the navigation to the first graph being drawn, in Chromium without a window: the median and the longest "
        f"of {rounds}; busy: of it on a processor, the median.",
        COMMAND,
        ["nodes", "names", "page", "boxes shown", "median", "longest", "busy"],
    )
    with tempfile.TemporaryDirectory(prefix="mari-onnx-") as folder, browser() as driver:
        driver.execute_cdp_cmd("Performance.enable", {"timeDomain": "threadTicks"})
        for count in nodes:
            for named in (True, False):
                model = ranker(count, named)
                path = Path(folder, f"{count}{'' if named else '-unnamed'}.html")
                write_page(model, path)
                times, threads = [], []
                for _ in range(rounds):
                    times.append(opened(driver, path))
                    threads.append(busy(driver))
                boxes = driver.execute_script("return document.querySelectorAll('svg .box:not(.head)').length")
                row = [f"{len(model.graph.node):,}", "yes" if named else "no", f"{path.stat().st_size / 1e6:.2f} MB"]
                row += [str(boxes), f"{statistics.median(times):.0f} ms", f"{max(times):.0f} ms"]
                row += [f"{statistics.median(threads):.0f} ms"]
                result.rows.append(row)
                name = f"{len(model.graph.node):,} nodes{'' if named else ' without names'}: open in under 2 s"
                result.targets.append(Target.at_most(name, statistics.median(times) / 1e3, SECONDS, " s"))
                for theme in ("light", "dark") if pictures is not None else ():
                    opened(driver, path, theme)
                    picture(driver, pictures / f"{path.stem}-{theme}.png")
    return result


def main() -> int:
    from mari_onnx.report.terminal import console

    parser = argparse.ArgumentParser(prog=COMMAND, description=__doc__)
    parser.add_argument("--pictures", type=Path, metavar="FOLDER", help="also write pictures of the pages there")
    parser.add_argument("--nodes", type=int, nargs="+", default=NODES)
    parser.add_argument("--docs", type=Path, metavar="FOLDER", help="write the pictures of docs/report.md there, only")
    args = parser.parse_args()
    if args.docs is not None:
        for_docs(args.docs)
        return 0
    if args.pictures is not None:
        args.pictures.mkdir(parents=True, exist_ok=True)
    result = section(args.nodes, pictures=args.pictures)
    result.show(console())
    return 0 if result.met else 1


if __name__ == "__main__":
    sys.exit(main())
