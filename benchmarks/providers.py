"""Which execution providers load our outputs and agree with the CPU: `python -m benchmarks.providers`.

Every output is made twice, for the CPU and as `--target portable`. Both and the source run one request on each
provider; the numbers are compared with those of onnxruntime's CPU provider on the same file. OpenVINO comes in
environments of its own (`benchmarks/environments.py`); CUDA and TensorRT are measured where a GPU is present. Prints a
table and writes it into docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx

from benchmarks.demo.model import sides_of
from benchmarks.environments import NotThere, Remote, environment
from benchmarks.run import PAGE
from benchmarks.scoreboard import MODELS, WRONG, apart
from benchmarks.tables import Section, replaced
from mari_onnx import api, runtime
from mari_onnx.choices import options_for
from mari_onnx.errors import MariError, first_line
from mari_onnx.model.load import read
from mari_onnx.model.nodes import all_nodes
from mari_onnx.model.save import write_text
from mari_onnx.report.terminal import console
from mari_onnx.timing.measure import draw

COMMAND = "python -m benchmarks.providers"
N = 64
KINDS = ("source", "cpu", "portable")
"""The source, and the outputs for these targets."""

Feed = Mapping[str, np.ndarray]
# (model, feed, names of outputs) -> outputs, and provider -> nodes that ran there. Raises MariError or NotThere.
Runner = Callable[[Path, Feed, Sequence[str]], tuple[Sequence[np.ndarray], Mapping[str, int]]]


@dataclass(frozen=True)
class Given:
    """A file, what it is fed, and the outputs of onnxruntime's CPU provider."""

    path: Path
    feed: Feed
    expected: Mapping[str, np.ndarray]


@dataclass
class Tally:
    """What one provider did with all files of one kind."""

    given: int = 0
    loaded: int = 0
    agreed: int = 0
    worst: float = 0.0
    on_it: int = 0
    nodes: int = 0
    notes: list[str] = field(default_factory=list)

    def add(self, model: str, provider: str, runner: Runner, given: Given) -> None:
        """Runs one file."""
        self.given += 1
        try:
            got, nodes = runner(given.path, given.feed, list(given.expected))
        except (MariError, NotThere) as error:
            self.notes.append(f"{model} is not loaded: ..{first_line(error)[-160:]}")
            return
        self.loaded += 1
        difference = apart(list(given.expected.values()), got)
        self.worst = max(self.worst, difference)
        self.agreed += difference <= WRONG
        if difference > WRONG:
            self.notes.append(f"{model} differs by {difference:.1e}")
        self.on_it += nodes.get(provider, 0)
        self.nodes += sum(nodes.values())

    def cells(self) -> list[str]:
        share = f"{self.on_it / self.nodes:.0%}" if self.nodes else ""
        return [f"{self.loaded} of {self.given}", f"{self.agreed}", f"{self.worst:.0e}", share]


def _remote(package: str) -> Runner:
    def run(path: Path, feed: Feed, names: Sequence[str]) -> tuple[Sequence[np.ndarray], Mapping[str, int]]:
        remote = Remote(package, path, feed, names)
        remote.close()
        return remote.outputs, remote.nodes

    return run


def _here(provider: str) -> Runner:
    def run(path: Path, feed: Feed, names: Sequence[str]) -> tuple[Sequence[np.ndarray], Mapping[str, int]]:
        outputs = runtime.run(runtime.session(path, provider), feed, path.name, names)
        return outputs, runtime.nodes_by_provider(path, feed, provider, path.name)

    return run


def runners() -> tuple[dict[tuple[str, str], Runner], dict[str, str]]:
    """(what tables call it, name of the provider in profiles) -> runner; and what is not measured here -> why."""
    found: dict[tuple[str, str], Runner] = {}
    missing: dict[str, str] = {}
    for package, provider in (("openvino", "OpenVINO"), ("onnxruntime-openvino", "OpenVINOExecutionProvider")):
        try:
            _, version = environment(package)
            found[f"{package} {version}", provider] = _remote(package)
        except NotThere as error:
            missing[package] = str(error)
    for name in ("cuda", "tensorrt"):
        try:
            runtime.require(name)
            found[name, runtime.provider_name(name)] = _here(name)
        except MariError as error:
            missing[name] = str(error).splitlines()[0]
    return found, missing


def section(paths: Sequence[Path]) -> Section:
    result = Section(
        "Execution providers",
        f"{len(paths)} models (models/, tests/data/interop/), as they are, as `optimize` writes them, and as with "
        f"`--target portable`, on one drawn request of {N} candidates: how many a provider loads and runs, how many of "
        f"them give the numbers that onnxruntime's CPU provider gives of the same file (to {WRONG:g}, relative to the "
        "largest of an output), the largest difference, and the share of the nodes that ran on the provider itself "
        "(the rest ran on the CPU's). `openvino` is OpenVINO's own runtime, "
        "`onnxruntime-openvino` onnxruntime's provider, each in an environment of its own, in float32. The last column "
        "counts nodes of other domains than ONNX's own that the source does not have.",
        COMMAND,
        ["provider, file", "loads", "agrees", "largest difference", "on the provider", "nodes of other domains"],
    )
    found, missing = runners()
    tallies = {(name, provider, kind): Tally() for name, provider in found for kind in KINDS}
    foreign = dict.fromkeys(KINDS, 0)
    for path in paths:
        with tempfile.TemporaryDirectory(prefix="mari-onnx-") as folder:
            for kind, (given, more) in _files(path, Path(folder)).items():
                foreign[kind] += more
                for (name, provider), runner in found.items():
                    tallies[name, provider, kind].add(path.stem, provider, runner, given)
        print(path.name, file=sys.stderr)
    for (name, _, kind), tally in tallies.items():
        result.rows.append([f"{name}, {kind}", *tally.cells(), str(foreign[kind])])
        result.notes += [f"{name}, {kind}: {note}" for note in tally.notes]
    for name, why in missing.items():
        result.rows.append([name, "not measured here", "", "", "", ""])
        result.notes.append(f"{name}: {why[:160]}")
    return result


def _files(path: Path, folder: Path) -> dict[str, tuple[Given, int]]:
    """The source and our outputs of it, and how many nodes of other domains each has beyond the source."""
    source, sides = read(path), sides_of(path)
    request = draw(source, sides, N, 1)[0]
    found = {}
    for kind in KINDS:
        file, more = path, 0
        if kind != "source":
            done = api.rewritten(source, sides, options_for(target=kind, assume=True))
            file, more = folder / f"{kind}.onnx", _foreign(done.model) - _foreign(source.model)
            done.save(file)
        session = runtime.session(file)
        feed = request.feed(session.get_inputs())
        names = [each.name for each in session.get_outputs()]
        expected = dict(zip(names, runtime.run(session, feed, path.name, names), strict=True))
        found[kind] = (Given(file, feed, expected), more)
    return found


def _foreign(model: onnx.ModelProto) -> int:
    """Nodes of other domains than ONNX's own."""
    return sum(node.domain not in ("", "ai.onnx", "ai.onnx.ml") for node in all_nodes(model.graph.node))


def main() -> int:
    parser = argparse.ArgumentParser(prog=COMMAND, description=__doc__)
    parser.add_argument("models", nargs="*", type=Path, help="by default models/*.onnx and tests/data/interop/*.onnx")
    args = parser.parse_args()
    result = section(args.models or MODELS)
    result.show(console())
    if not args.models:
        write_text(PAGE, replaced(PAGE.read_text(encoding="utf-8"), "providers", result.markdown()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
