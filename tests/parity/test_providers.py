"""Which providers a check runs on, told by fakes of what onnxruntime says it has: CUDA that computes on the CPU."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from mari_onnx import runtime
from mari_onnx.cli.main import run
from mari_onnx.errors import ProviderError
from mari_onnx.model import save
from mari_onnx.parity import check
from tests import tiny
from tests.parity.pairs import coarse

TAGS = ["--user", "user_*", "--item", "item_*"]
CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
PAIR = coarse()


class Machine:
    """What onnxruntime has here, and what it does.

    Args:
        has: the providers built in.
        loads: whether CUDA loads, or falls back to the CPU as onnxruntime does, without an error.
        takes: whether CUDA takes a node.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, has: list[str], loads: bool = True, takes: bool = True):
        plain, machine = onnxruntime.InferenceSession, self
        self.asked: list[str] = []
        # Models whose session on CUDA cannot be made.
        self.fails = False

        class Session:
            def __init__(self, model: Any, options: Any, providers: list[Any], **rest: Any):
                first = providers[0] if isinstance(providers[0], str) else providers[0][0]
                machine.asked.append(first)
                self.providers = [CPU] if first == CPU or not loads else [first, CPU]
                if first == CUDA and machine.fails:
                    raise RuntimeError("CUDA failure 2: out of memory")
                self.session = plain(model, options, providers=[CPU], **rest)

            def get_providers(self) -> list[str]:
                return self.providers

            def __getattr__(self, name: str) -> Any:
                return getattr(self.session, name)

        def nodes(*_: Any) -> dict[str, int]:
            return {CUDA: 3} if takes else {CPU: 3}

        monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: has)
        monkeypatch.setattr(onnxruntime, "InferenceSession", Session)
        monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: None, raising=False)
        monkeypatch.setattr(runtime, "nodes_by_provider", nodes)


def test_auto_is_cuda_too_where_a_gpu_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch, [CUDA, CPU])
    result = check(PAIR.source, PAIR.optimized, PAIR.sides, candidates=(1, 3), coverage=0)
    assert (result.verdict, result.providers) == ("equal", ["cpu", "cuda"])
    assert {o.provider for o in result.outputs} == {"cpu", "cuda"}
    assert CUDA in machine.asked
    assert result.to_dict()["providers"] == ["cpu", "cuda"]


@pytest.mark.parametrize(("has", "loads"), [([CPU], True), ([CUDA, CPU], False)])
def test_auto_is_the_cpu_where_none_does(monkeypatch: pytest.MonkeyPatch, has: list[str], loads: bool) -> None:
    Machine(monkeypatch, has, loads)
    result = check(PAIR.source, PAIR.optimized, PAIR.sides, candidates=(1, 3), coverage=0)
    assert (result.verdict, result.providers) == ("equal", ["cpu"])
    for named in (["cuda"], ["auto", "cuda"]):
        with pytest.raises(ProviderError):
            check(PAIR.source, PAIR.optimized, PAIR.sides, candidates=(3,), coverage=0, providers=named)


def test_cuda_that_takes_no_node_is_not_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    Machine(monkeypatch, [CUDA, CPU], takes=False)
    result = check(PAIR.source, PAIR.optimized, PAIR.sides, candidates=(1, 3), coverage=0)
    assert (result.verdict, result.providers) == ("equal", ["cpu"])
    assert any(note.startswith("cuda is skipped: no node") for note in result.notes)
    assert {o.provider for o in result.outputs} == {"cpu"}
    with pytest.raises(ProviderError, match="no node"):
        check(PAIR.source, PAIR.optimized, PAIR.sides, candidates=(3,), coverage=0, providers=["cuda"])


def test_what_differs_on_the_gpu_alone_differs(monkeypatch: pytest.MonkeyPatch) -> None:
    Machine(monkeypatch, [CUDA, CPU])
    plain = runtime.session

    def session(model: Any, provider: str = "cpu", *rest: Any, **more: Any) -> Any:
        wrong = provider == "cuda" and more.get("what") == "the optimized model"
        return plain(tiny_fault(PAIR.optimized) if wrong else model, provider, *rest, **more)

    monkeypatch.setattr(runtime, "session", session)
    result = check(PAIR.source, PAIR.optimized, PAIR.sides, candidates=(1, 3), coverage=0)
    assert result.verdict == "different"
    assert {o.provider for o in result.outputs if not o.ok} == {"cuda"}


def tiny_fault(model: onnx.ModelProto) -> onnx.ModelProto:
    from tests.parity.mutants import MUTANTS, mutate

    return mutate(model, MUTANTS["bias added twice"][1])


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "in.onnx"
    save.save(tiny.fc(user=256, item=64, hidden=128), path)
    return path


def test_optimize_says_on_what_it_ran_and_writes_the_same_anywhere(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    report = tmp_path / "r.json"
    written = []
    for has, ran in (([CPU], ["cpu"]), ([CUDA, CPU], ["cpu", "cuda"])):
        with monkeypatch.context() as patch:
            Machine(patch, has)
            out = tmp_path / f"{len(has)}.onnx"
            assert run(["optimize", str(source), str(out), *TAGS, "--report", str(report)]) == 0
        said = capsys.readouterr().out
        assert f"on {' and '.join(ran)}" in said
        assert ("--target cuda" in said) == ("cuda" in ran)
        assert json.loads(report.read_text())["check"]["providers"] == ran
        written.append(out.read_bytes())
    assert written[0] == written[1]


def test_a_provider_asked_for_by_name_must_be_there(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Machine(monkeypatch, [CPU])
    out = tmp_path / "out.onnx"
    assert run(["optimize", str(source), str(out), *TAGS, "--provider", "cuda"]) == 5
    assert not out.exists()
    # Also where nothing is to be lifted, so that nothing would be run.
    nothing = tmp_path / "nothing.onnx"
    save.save(tiny.items_only(), nothing)
    assert run(["optimize", str(nothing), str(out), "--item", "item_x", "--provider", "cuda"]) == 5
    assert run(["optimize", str(source), str(out), *TAGS, "--provider", "gpu"]) == 5
    assert "there is no execution provider" in capsys.readouterr().err
    assert run(["optimize", str(source), str(out), *TAGS, "--provider", "cpu"]) == 0
    assert run(["optimize", str(source), str(out), *TAGS, "--provider", "cpu", "--no-check"]) == 2


def test_out_of_memory_on_a_gpu_that_nobody_asked_for_is_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch, [CUDA, CPU])
    monkeypatch.setattr("mari_onnx.runtime.providers.gpu_answers", lambda: True)
    machine.fails = True
    result = check(PAIR.source, PAIR.optimized, PAIR.sides, candidates=(1, 3), coverage=0)
    assert (result.verdict, result.providers) == ("equal", ["cpu"])
    assert any("cuda is skipped" in note and "out of memory" in note for note in result.notes)


# ---- recorded requests in optimize ------------------------------------------------------------------------------
def recorded(path: Path, differ: bool = False) -> str:
    rng = np.random.default_rng(0)
    user = np.repeat(rng.standard_normal((1, 256)), 3, axis=0).astype(np.float32)
    user[2, 5] += differ
    np.savez(path, user_x=user, item_x=rng.standard_normal((3, 64)).astype(np.float32))
    return str(path)


def test_optimize_checks_on_recorded_requests_too(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, report = tmp_path / "out.onnx", tmp_path / "r.json"
    flags = ["optimize", str(source), str(out), *TAGS, "--report", str(report)]
    assert run([*flags, "--data", recorded(tmp_path / "right.npz")]) == 0
    said = capsys.readouterr().out
    assert "1 recorded requests among them" in said
    assert "--data" not in said
    found = json.loads(report.read_text())["check"]
    assert (found["recorded"], found["candidates"]) == (1, [1, 2, 3, 7, 64, 500])
    out.unlink()
    assert run([*flags, "--data", recorded(tmp_path / "wrong.npz", differ=True)]) == 2
    assert "its row 2 differs from row 0" in capsys.readouterr().err
    assert not out.exists()
    import mari_onnx

    done = mari_onnx.optimize(source, user=["user_*"], item=["item_*"], requests=tmp_path / "right.npz")
    assert done.report.check is not None
    assert done.report.check["recorded"] == 1
    sides = done.sides
    assert mari_onnx.check(source, done.model, sides, requests=tmp_path / "right.npz").candidates == [3]


def test_without_recorded_requests_it_says_once_what_drawn_ones_cannot_show(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tiny.inputs(user_id=["N", 4], item_price=["N", 2], pair_x=["N", 2])
    path = tmp_path / "named.onnx"
    save.save(model, path)
    assert run(["optimize", str(source), str(tmp_path / "o.onnx"), *TAGS]) == 0
    assert capsys.readouterr().out.count("--data") == 1
    tags = ["--item", "user_id", "--user", "item_price", "--cross", "pair_x"]
    assert run(["check", str(path), str(path), *tags]) == 0
    said = capsys.readouterr().out
    assert said.count("--data") == 1
    assert "item_price is tagged user, but its name looks like item" in said
    assert "user_id is tagged item, but its name looks like user" in said
    assert "pair_x is tagged" not in said
    assert run(["check", str(path), str(path), "--rest", "cross"]) == 0
    assert "--data" not in capsys.readouterr().out
