"""The rewrite from where people already are: onnx-ir passes, an export from PyTorch, rules of other packages."""

from __future__ import annotations

import json
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import onnx
import onnx.parser
import onnx_ir as ir
import pytest
from onnx_ir.passes import PassManager

import mari_onnx
from mari_onnx.ir_pass import OncePerRequest

MODELS = Path(__file__).parents[1] / "models"
SAMPLES = sorted(MODELS.glob("*.onnx"))


def _facts(model: onnx.ModelProto) -> tuple[list[tuple[str, ...]], dict[str, bytes]]:
    """The nodes in any valid order, and the initializers by name."""
    nodes = sorted((n.op_type, ",".join(n.input), ",".join(n.output)) for n in model.graph.node)
    return nodes, {t.name: onnx.numpy_helper.to_array(t).tobytes() for t in model.graph.initializer}


@pytest.mark.parametrize("path", SAMPLES, ids=lambda path: path.stem)
def test_the_pass_writes_what_optimize_writes(path: Path) -> None:
    sides = mari_onnx.inspect(path).sides
    model = ir.from_proto(onnx.load(path))
    before = ir.to_proto(model).SerializeToString()
    result = PassManager([OncePerRequest(sides=sides, check=False)])(model)
    done = mari_onnx.optimize(path, check=False)
    assert result.modified == done.changed
    assert _facts(ir.to_proto(result.model)) == _facts(done.model)
    assert ir.to_proto(model).SerializeToString() == before


def test_a_pass_with_nothing_to_do_says_so() -> None:
    text = '<ir_version: 9, opset_import: ["": 18]> g (float[N,4] x) => (float[N,4] y) { y = Relu(x) }'
    model = ir.from_proto(onnx.parser.parse_model(text))
    result = OncePerRequest(item=["x"], check=False)(model)
    assert not result.modified
    assert _facts(ir.to_proto(result.model)) == _facts(ir.to_proto(model))


DOCS = Path(__file__).parents[1] / "docs"
# The module of the example in the docs.
RULE = (DOCS / "writing-rules.md").read_text().split("# team_rules.py\n")[1].split("```")[0]
CUSTOM = """
<ir_version: 9, opset_import: ["": 18, "team.ops": 1]>
g (float[N,8] user_x, float[N,4] item_x) => (float[N,12] y) <float[N,8] s> { s = team.ops.Swish(user_x)
 t = Relu(s)
 y = Concat<axis = 1>(t, item_x) }
"""


def _installed(folder: Path, rule: str) -> dict[str, str]:
    """A package with an entry point, as pip leaves it, and the environment in which it is found."""
    info = folder / "team_rules-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: team-rules\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[mari_onnx.rules]\nteam = team_rules\n")
    (folder / "team_rules.py").write_text(rule)
    import os

    return {**os.environ, "PYTHONPATH": f"{folder}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}


def _inspected(folder: Path, environment: dict[str, str] | None) -> subprocess.CompletedProcess[str]:
    model = onnx.parser.parse_model(CUSTOM)
    onnx.save(model, folder / "model.onnx")
    command = [sys.executable, "-m", "mari_onnx", "inspect", str(folder / "model.onnx"), "--json"]
    flags = ["--user", "user_x", "--item", "item_x"]
    return subprocess.run([*command, *flags], env=environment, capture_output=True, text=True, timeout=300, check=False)


def test_a_rule_of_another_package_lifts_its_operator(tmp_path: Path) -> None:
    without = _inspected(tmp_path, None)
    actions = {node["op"]: node["action"] for node in json.loads(without.stdout)["nodes"]}
    assert actions["Relu"] == "kept"
    told = _inspected(tmp_path, _installed(tmp_path / "site", RULE))
    assert told.returncode == 0, told.stderr
    actions = {node["op"]: node["action"] for node in json.loads(told.stdout)["nodes"]}
    assert actions == {"Swish": "lifted", "Relu": "lifted", "Concat": "split"}


def test_a_plug_in_that_fails_is_named(tmp_path: Path) -> None:
    told = _inspected(tmp_path, _installed(tmp_path / "site", "raise OSError('no library')"))
    assert told.returncode == 2
    assert "the plug-in 'team' (team_rules) cannot be loaded: OSError: no library" in told.stderr


class _Stub(types.ModuleType):
    """As much of torch as the export touches; its export writes a sample model."""

    def __init__(self, file: Path):
        super().__init__("torch")
        self.asked: dict[str, Any] = {}
        self.nn = types.SimpleNamespace(Module=object)
        self.export = types.SimpleNamespace(Dim=lambda name, min: (name, min))

        def write(model: Any, args: Any, path: str, **asked: Any) -> None:
            assert not model.training
            self.asked = asked
            Path(path).write_bytes(file.read_bytes())

        self.onnx = types.SimpleNamespace(export=write)


class _Model:
    training = True

    def forward(self, user_dense: Any, item_dense: Any) -> None: ...

    def state_dict(self) -> dict[str, Any]:
        return {"weight": types.SimpleNamespace(numel=lambda: 400_000_000, element_size=lambda: 4)}

    def eval(self) -> _Model:
        self.training = False
        return self

    def train(self, mode: bool) -> None:
        self.training = mode


def test_an_export_from_torch_is_rewritten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stub = _Stub(MODELS / "coarse_mlp.onnx")
    monkeypatch.setitem(sys.modules, "torch", stub)
    from mari_onnx.torch import export

    model, rows = _Model(), types.SimpleNamespace(ndim=2)
    done = export(
        model, [rows, rows], tmp_path / "out.onnx", user=["user_*", "ctx_*", "hist_*"], rest="item",
        options={"check": False},
    )  # fmt: skip
    assert done.changed
    assert model.training
    assert stub.asked["input_names"] == ["user_dense", "item_dense"]
    assert stub.asked["external_data"]  # 1.6 GB of weights
    assert stub.asked["dynamic_shapes"] == ({0: ("N", 1)}, {0: ("N", 1)})
    assert onnx.load(tmp_path / "out.onnx").graph.node


def test_the_pass_in_the_docs_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = (DOCS / "integrations.md").read_text().split("```python\n")[1].split("```")[0]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").symlink_to(MODELS)
    exec(compile(code, "integrations.md", "exec"), {})
    assert len(onnx.load("din.fast.onnx").graph.node) > 10


def test_what_a_machine_without_a_gpu_installs_is_all_that_is_needed() -> None:
    from configparser import ConfigParser

    from packaging.requirements import Requirement

    root = DOCS.parent
    lines = (root / "packaging/requirements-cpu.txt").read_text().splitlines()
    pins = [Requirement(line) for line in lines if line[0] != "#"]
    pinned = {pin.name.lower().replace("_", "-"): next(iter(pin.specifier)).version for pin in pins}
    setup = ConfigParser()
    setup.read(root / "setup.cfg")
    for line in filter(None, setup["options"]["install_requires"].splitlines()):
        if line[0] == "#":
            continue
        each = Requirement(line)
        name = each.name.replace("onnxruntime-gpu", "onnxruntime")
        assert each.specifier.contains(pinned[name]), each
    assert "onnxruntime-gpu" not in pinned
