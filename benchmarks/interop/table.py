"""The text of `docs/interop.md`, from the results of a run."""

from __future__ import annotations

from typing import Any

HEAD = """# Interop: models of a public framework

Every model of [deepctr-torch](https://github.com/shenweichen/DeepCTR-Torch) 0.3.0, exported with
both of PyTorch's ONNX exporters (`dynamo`: opset 20, `script`: opset 17), each with one input per
feature (`split`) and with all features in one matrix (`packed`). Features: 12 user, 3 context, 8
item and 2 cross ids, 7 dense values, a history of 50; embeddings 16 wide, hidden layers of 512, 256
and 128. `make interop` exports, optimizes, checks and measures them all and writes this page.

- **residual**: share of the per-candidate FLOPs that is spent on results equal for all candidates,
  in the source and in the output, measured by running the graph (`mari-onnx inspect --measure`).
- **FLOPs**: of the source over those of the output, at 61 candidates.
- **nodes**: of the source and of the output.
- **error**: the largest absolute difference of any output at N = 1, 7, 64 and 500, checked against
  a float64 run of the source (docs/parity.md).
- **x64**, **x500**: time of the source over time of the output with N candidates, one CPU thread, in
  thread time, both in turn in one process; above 1 the output is faster. What comes out below 0.98 is timed
  again, six times as long, and that counts.
"""


def render(found: list[dict[str, Any]], failed: dict[str, str], machine: str = "") -> str:
    """The whole page: what is in the corpus, a summary, a row per graph, what is left and why.

    Args:
        found: the record of each graph (`run.one`).
        failed: what each graph that did not export left, its cause in the first line.
        machine: what times were taken on.
    """
    done = [x for x in found if "error" not in x]
    parts = [HEAD, *([f"Times: {machine}.\n"] if machine else []), _summary(done, found), _rows(done)]
    broken = [x for x in found if "error" in x]
    if broken:
        lines = "\n".join(f"- `{x['graph']}`: {x['error']}" for x in broken)
        parts.append(f"## Not optimized\n\n{lines}\n")
    left = [x for x in done if x["residual"][1] > 0.01]
    if left:
        parts.append("## More than 1% left, and why\n\n" + "\n".join(map(_left, left)) + "\n")
    if failed:
        parts.append("## Not exported\n\n" + _failures(failed))
    return "\n".join(parts)


def _summary(done: list[dict[str, Any]], found: list[dict[str, Any]]) -> str:
    low = sum(x["residual"][1] <= 0.01 for x in done)
    equal = sum(x["check"]["ok"] for x in done)
    grown = sum(x["nodes"][1] > 2 * x["nodes"][0] for x in done)
    lines = [
        f"- {len(found)} graphs, {len(done)} optimized, {equal} of these equal to their source.",
        f"- Residual at most 1% in {low} of {len(done)}.",
        f"- More than twice the nodes of the source: {grown}.",
    ]
    versions = len({x.get("code") for x in found})
    if versions > 1:
        lines.append(f"- Taken while the engine changed: {versions} versions of it.")
    for n in ("64", "500"):
        times = sorted(x["ratio"][n] for x in done if "ratio" in x)
        if times:
            slower = sum(t < 0.98 for t in times)
            lines.append(
                f"- N = {n}: {times[len(times) // 2]:.2f}x in the median, {times[0]:.2f}x to "
                f"{times[-1]:.2f}x; below 0.98x: {slower}."
            )
    return "## Summary\n\n" + "\n".join(lines) + "\n"


def _rows(done: list[dict[str, Any]]) -> str:
    lines = [
        "## Graphs\n",
        "| graph | residual | FLOPs | nodes | error | x64 | x500 |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for x in done:
        times = x.get("ratio", {})
        cells = [
            x["graph"],
            f"{x['residual'][0]:.1%} -> {x['residual'][1]:.1%}",
            f"{x['flops'][0] / max(x['flops'][1], 1e-9):.2f}x",
            f"{x['nodes'][0]} -> {x['nodes'][1]}",
            f"{x['check']['error']:.1e}" + ("" if x["check"]["ok"] else " **differs**"),
            *(f"{times[n]:.2f}" if n in times else "" for n in ("64", "500")),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _left(x: dict[str, Any]) -> str:
    op, _, _, text, _ = x["left"][0]
    why = "; ".join(dict.fromkeys(row[4] for row in x["left"][:2]))
    return f"- `{x['graph']}` ({x['residual'][1]:.1%}): {op}, {text}. {why}."


def _failures(failed: dict[str, str]) -> str:
    """Graphs by cause, the first line of what each left."""
    causes: dict[str, list[str]] = {}
    for name, text in sorted(failed.items()):
        causes.setdefault(text.splitlines()[0].replace("|", "/"), []).append(f"`{name}`")
    return "".join(f"- {', '.join(names)}: {why}\n" for why, names in causes.items())
