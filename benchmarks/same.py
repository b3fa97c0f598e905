"""Does a change of the code change what it writes? `make same BASE=COMMIT`.

This checkout collects models and random graphs in a folder. Then each of the two revisions rewrites all of them in a
process of its own, and the files are compared byte for byte. A pure move of code keeps every byte. No hashes are
committed, because folded constants depend on the processor.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = 500


def collect(folder: Path, examples: int, seed: int) -> int:
    """Writes the models (`NAME.onnx`) and their sides (`NAME.json`) to a folder; answers how many there are."""
    from hypothesis import HealthCheck, Phase, given, settings
    from hypothesis import seed as seeded

    from mari_onnx.model.load import load
    from mari_onnx.model.signature import signature
    from mari_onnx.sides.resolve import resolve
    from tests.fuzz.case import Case, cases

    count = 0
    for path in sorted([*(ROOT / "models").glob("*.onnx"), *(ROOT / "tests/data/interop").glob("*.onnx")]):
        beside = path.with_name(path.name.replace(".torchscript", "")).with_suffix(".sides.toml")
        sides = resolve(signature(load(path)), file=beside)
        _keep(folder, f"model-{path.stem}", path.read_bytes(), sides, 500)
        count += 1

    kept: set[bytes] = set()

    @seeded(seed)
    @settings(
        max_examples=examples, deadline=None, database=None, suppress_health_check=list(HealthCheck),
        phases=[Phase.generate],
    )  # fmt: skip
    @given(cases())
    def keep(case: Case) -> None:
        data = case.model.SerializeToString(deterministic=True)
        if data not in kept:
            _keep(folder, f"fuzz-{len(kept):05}", data, case.graph.sides, case.candidates)
            kept.add(data)

    keep()
    return count + len(kept)


def _keep(folder: Path, name: str, model: bytes, sides: object, candidates: int) -> None:
    (folder / f"{name}.onnx").write_bytes(model)
    said = {key: getattr(sides, key) for key in ("inputs", "columns", "candidate_axis")}
    (folder / f"{name}.json").write_text(json.dumps({"sides": said, "candidates": candidates}))


def rewrite_all(folder: Path, out: Path) -> None:
    """Rewrites every model of a folder by the `mari_onnx` that is on the path; what it raises is written instead."""
    import onnx

    from mari_onnx.engine import Options, rewrite
    from mari_onnx.sides.resolve import Sides

    for path in sorted(folder.glob("*.onnx")):
        said = json.loads(path.with_suffix(".json").read_text())
        sides = Sides(
            said["sides"]["inputs"],
            {n: {s: tuple(c) for s, c in parts.items()} for n, parts in said["sides"]["columns"].items()},
            said["sides"]["candidate_axis"],
        )
        try:
            how = {"candidates": said["candidates"]}
            if "assume" in Options.__dataclass_fields__:  # as `inspect` does; older revisions prove instead
                how["assume"] = True
            done = rewrite(onnx.load(path), sides, Options(**how))
            data = done.model.SerializeToString(deterministic=True)
            figures = {"flops": done.flops, "changed": done.changed, "nodes": len(done.model.graph.node)}
        except Exception as error:
            data, figures = repr(error).encode(), {"raised": repr(error)}
        (out / path.name).write_bytes(data)
        (out / path.name).with_suffix(".json").write_text(json.dumps(figures))


def _revision(base: str, folder: Path) -> Path:
    """The package of a commit, unpacked."""
    archive = subprocess.run(
        ["git", "-C", str(ROOT), "archive", base, "mari_onnx"], check=True, capture_output=True
    ).stdout
    folder.mkdir()
    subprocess.run(["tar", "-x", "-C", str(folder)], input=archive, check=True)
    return folder


def _run(package: Path, models: Path, out: Path) -> subprocess.Popen[bytes]:
    out.mkdir()
    env = {**os.environ, "PYTHONPATH": str(package), "OMP_NUM_THREADS": "1", "MARI_ONNX_STRICT": ""}
    return subprocess.Popen([sys.executable, __file__, "--rewrite", str(models), str(out)], env=env, cwd=models)


def compare(models: Path, before: Path, after: Path) -> list[str]:
    """A line for each model of which the two revisions write other bytes."""
    lines = []
    for path in sorted(models.glob("*.onnx")):
        if (before / path.name).read_bytes() == (after / path.name).read_bytes():
            continue
        was, now = (json.loads((d / path.name).with_suffix(".json").read_text()) for d in (before, after))
        told = [f"{k} {was.get(k)} -> {now.get(k)}" for k in {**was, **now} if was.get(k) != now.get(k)]
        lines.append(f"{path.stem}: {', '.join(told) or 'other bytes, same figures'}")
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", nargs="?", help="the commit to compare with")
    parser.add_argument("--examples", type=int, default=EXAMPLES, help="random graphs (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the random graphs")
    parser.add_argument("--keep", type=Path, help="a new folder for the models and what each revision wrote")
    parser.add_argument("--rewrite", nargs=2, type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.rewrite:
        rewrite_all(*given.rewrite)
        return 0
    if not given.base:
        parser.error("no commit to compare with: make same BASE=COMMIT")
    with tempfile.TemporaryDirectory() as scratch:
        folder = given.keep or Path(scratch)
        models, before, after = folder / "models", folder / "before", folder / "after"
        models.mkdir(parents=True)
        count = collect(models, given.examples, given.seed)
        runs = [_run(_revision(given.base, folder / "base"), models, before), _run(ROOT, models, after)]
        failed = [run.wait() for run in runs]
        if any(failed):
            return 2
        lines = compare(models, before, after)
    print(*lines, sep="\n", end="\n" if lines else "")
    print(f"{count - len(lines)} of {count} graphs: the same bytes as {given.base}")
    return bool(lines)


if __name__ == "__main__":
    sys.exit(main())
