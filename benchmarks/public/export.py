"""Exports models of public packages: ``python -m benchmarks.public.export --out DIR [--only TEXT] [--exporter E]``.

Runs where PyTorch and the packages are; it needs nothing of mari-onnx. Each graph is compared with its model once. What
cannot be exported leaves a file ``NAME.failed.txt`` with the reason.
"""

from __future__ import annotations

import argparse
import signal
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

LIMIT_S = 240
LARGEST = 6_000_000
FAMILIES = ("text", "rankers", "sequences")


@dataclass(frozen=True)
class In:
    """An input: its side, its shape behind the candidates, and what it holds: ids below `high`, or floats."""

    name: str
    side: str
    shape: tuple[int, ...] = ()
    high: int = 0

    def draw(self, rng: np.random.Generator, n: int) -> np.ndarray:
        """Values for n candidates: those of the user are repeated."""
        rows = (1 if self.side == "user" else n, *self.shape)
        made = rng.integers(1, self.high, rows) if self.high else rng.standard_normal(rows).astype(np.float32)
        return np.repeat(made, n // rows[0], 0)


@dataclass(frozen=True)
class Model:
    """A model of a package.

    make: writes the module, which takes the inputs in order.
    """

    name: str
    package: str
    make: Callable[[], Any]
    inputs: Sequence[In]


def models() -> Iterator[Model]:
    """All of them; a package that is not there is left out."""
    for family in FAMILIES:
        yield from import_module(f"benchmarks.public.{family}").models()


def hidden(thing: Any, seen: set[int]) -> Iterator[Any]:
    """Parameters, those too of modules that a package keeps in dictionaries and lists; these are set to evaluate."""
    import torch

    if id(thing) in seen:
        return
    seen.add(id(thing))
    if isinstance(thing, torch.nn.Parameter):
        yield thing
    if isinstance(thing, torch.nn.Module):
        thing.training = False
    held = thing.__dict__ if isinstance(thing, torch.nn.Module) else thing
    if isinstance(held, dict | list | tuple):
        for each in held.values() if isinstance(held, dict) else held:
            yield from hidden(each, seen)


def lively(module: Any) -> None:
    """Parameters of 0 and 1, and statistics of nothing, become numbers that matter."""
    import torch

    with torch.no_grad():
        for name, buffer in module.named_buffers():
            if name.endswith("running_mean"):
                buffer.normal_(0, 0.2)
            elif name.endswith("running_var"):
                buffer.uniform_(0.5, 2)
        for parameter in hidden(module, set()):
            if parameter.is_floating_point() and parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter) * 0.1)
            elif parameter.is_floating_point() and parameter.ndim > 1 and float(parameter.std()) < 0.05:
                parameter.normal_(0, float(np.prod(parameter.shape[1:])) ** -0.5)


def export(model: Model, exporter: str, out: Path) -> str:
    """Writes the graph and its side file, or why not. Answers a line about it. exporter: "script" or "dynamo"."""
    import onnxruntime
    import torch

    torch.manual_seed(0)
    torch.backends.mha.set_fastpath_enabled(False)
    stem = f"{model.name}.{exporter}"
    path, part, failed = out / f"{stem}.onnx", out / f"{stem}.partial", out / f"{stem}.failed.txt"
    started, rng = time.perf_counter(), np.random.default_rng(0)
    try:
        module = model.make().eval()
        first = [torch.from_numpy(i.draw(rng, 5)) for i in model.inputs]
        with torch.no_grad():
            module(*first)  # some packages make their weights here
        lively(module)
        for parameter in hidden(module, set()):
            parameter.requires_grad_(False)
        names = [i.name for i in model.inputs]
        how: dict[str, Any] = {"input_names": names, "output_names": ["score"], "verbose": False}
        if exporter == "dynamo":
            batch = torch.export.Dim("N", min=1, max=65536)
            shapes = tuple({0: batch} for _ in names)
            how |= {"dynamic_shapes": shapes, "dynamo": True, "external_data": False, "opset_version": 20}
        else:
            how |= {"dynamic_axes": {k: {0: "N"} for k in [*names, "score"]}, "dynamo": False, "opset_version": 17}
        torch.onnx.export(module, tuple(first), str(part), **how)
        if part.stat().st_size > LARGEST:
            raise ValueError(f"{part.stat().st_size} bytes")
        session = onnxruntime.InferenceSession(str(part), providers=["CPUExecutionProvider"])
        wanted = {i.name for i in session.get_inputs()}
        for n in (3, 8):
            drawn = [i.draw(rng, n) for i in model.inputs]
            with torch.no_grad():
                want = module(*[torch.from_numpy(v) for v in drawn])
            feed = {k: v for k, v in zip(names, drawn, strict=True) if k in wanted}
            have = session.run(None, feed)[0]
            np.testing.assert_allclose(have, want.numpy(), rtol=5e-3, atol=5e-4)
        if float(np.std(np.reshape(have, (8, -1))[:, 0])) < 1e-7:
            raise ValueError("the scores of all candidates are equal")
        sides: dict[str, list[str]] = {}
        for each in model.inputs:
            if each.name in wanted:
                sides.setdefault(each.side, []).append(each.name)
        text = "".join(f"{side} = {sorted(held)!r}\n".replace("'", '"') for side, held in sides.items())
        package = f"{model.package} {version(model.package)}"
        path.with_suffix(".sides.toml").write_text(f"# {package}\n{text}")
        part.replace(path)
        return f"{time.perf_counter() - started:.1f} s, {path.stat().st_size // 1000} kB"
    except Exception as error:
        while error.__cause__ is not None:
            error = error.__cause__  # type: ignore[assignment]
        why = f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0][:200]}"
        failed.write_text(f"{why}\n\n{''.join(traceback.format_exception(error))[-3000:]}")
        return f"failed: {why[:140]}"
    finally:
        part.unlink(missing_ok=True)


def _late(*_: Any) -> None:
    raise TimeoutError(f"took longer than {LIMIT_S} s")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", default="", help="models whose name has this text")
    parser.add_argument("--exporter", choices=("script", "dynamo"), help="default: script, and dynamo where that fails")
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    args.out.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGALRM, _late)
    for model in models():
        for exporter in (args.exporter,) if args.exporter else ("script", "dynamo"):
            path = args.out / f"{model.name}.{exporter}.onnx"
            if args.only not in path.stem or path.exists():
                break
            if path.with_suffix(".failed.txt").exists():
                continue
            signal.alarm(LIMIT_S)
            with suppress(TimeoutError):
                print(f"{path.stem:44s} {export(model, exporter, args.out)}", flush=True)
            signal.alarm(0)
            if path.exists():
                break


if __name__ == "__main__":
    main()
