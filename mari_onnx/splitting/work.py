"""Rewrites a source so that it can be cut, chooses a plan, and places its files, for the check to run.

In: a source with its sides, a budget, and what was chosen before. Out: a `Work`, whose methods stand in for the engine
and for what the check runs (`mari_onnx.parity.guard`).
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mari_onnx.errors import ModelError, Unchanged
from mari_onnx.model.load import Source
from mari_onnx.model.upgrade import upgraded
from mari_onnx.sides.resolve import Sides
from mari_onnx.splitting.assembly import Assembly
from mari_onnx.splitting.choices import Cut
from mari_onnx.splitting.files import written
from mari_onnx.splitting.half import rounded
from mari_onnx.splitting.left import Left
from mari_onnx.splitting.manifest import Manifest
from mari_onnx.splitting.plan import Planner
from mari_onnx.splitting.timed import LARGEST, contenders, fastest
from mari_onnx.splitting.ways import Budget, Plan, Point, Way
from mari_onnx.suggest import unknown_sides

if TYPE_CHECKING:
    import onnx

    from mari_onnx.engine import Options, Rewrite

    Choose = Callable[[Sequence[Way]], Way]


class Work:
    """One way to split a source: its rewrites, and the files of the last one.

    Args:
        items: an item model may be made. chosen: where to cut, if that is known. clock: threads with which close ways
            are timed, once; None for none. half: states and rows are handed over in half precision, once `round` was
            called. choose: which way to take, instead of what prices and the clock prefer.
    """

    def __init__(
        self,
        source: Source,
        sides: Sides,
        options: Options,
        budget: Budget,
        items: bool,
        chosen: Cut | None,
        clock: int | None,
        half: bool = False,
        choose: Choose | None = None,
    ):
        self.source, self.sides, self.options = source, sides, options
        self.chosen, self.clock, self.choose = chosen, clock, choose
        made = upgraded(source.model)
        self.model, self.notes = made.model, list(made.notes)
        assert options.prices is not None
        self.planner = Planner(
            self.model, sides, options.prices, options.candidates, budget, options.target, items, half
        )
        self.plan: Plan | None = None
        self.slower = frozenset[str]()
        self.points: list[Point] = []
        self.left: list[Left] = []
        self.manifest: Manifest | None = None
        self.folder: tempfile.TemporaryDirectory[str] | None = None

    def rewritten(self, model: onnx.ModelProto, sides: Sides, options: Options) -> Rewrite:
        """The rewrite whose draft is best to cut; see `mari_onnx.engine.rewrite`."""
        from mari_onnx import engine

        way = self._again(sides, options)
        if way is None:
            joined = engine.rewrite(self.model, sides, dataclasses.replace(options, split="joined"))
            left = joined.left_for_time
            made = [
                engine.rewrite(self.model, sides, dataclasses.replace(options, split="apart", slower=slower))
                for slower in dict.fromkeys([left, frozenset[str]()])
            ]
            usable = [each for each in [*made, joined] if each.draft is not None]
            if not usable:
                raise ModelError(f"{self._name} cannot be split: {joined.reason}")
            ways, self.points = self.planner.ways(usable)
            way = self._fastest(ways)
        self.plan = self.planner.made(way)
        if not sides and not self.plan.user and not self.plan.item:
            raise unknown_sides(self.source)
        if self.plan.user is None and self.plan.item is None:
            undone = "" if not options.skip else ", once the rewrites that change the outputs are undone"
            raise Unchanged(
                f"nothing in {self._name} can be computed before a request{undone}: no operator reads inputs of the "
                "user alone or of the item alone with a result that is worth handing over",
                "mari-onnx optimize computes the user's part once per request",
            )
        self.left = self.planner.left(self.plan)
        self.points = sorted({*self.points, way.point}, key=lambda point: (point.item_bytes, point.seconds))
        self.chosen, self.slower = way.cut, way.rewrite.left_for_time
        return dataclasses.replace(way.rewrite, changed=True)

    def _again(self, sides: Sides, options: Options) -> Way | None:
        """The way that was chosen before, of a rewrite with these options; None where there is none."""
        if self.chosen is None:
            return None
        from mari_onnx import engine

        slower = options.slower if options.slower is not None else self.slower
        how = dataclasses.replace(options, split=self.chosen.form, slower=slower)
        made = engine.rewrite(self.model, sides, how)
        return self.planner.exactly(made, self.chosen) if made.draft is not None else None

    def _fastest(self, ways: Sequence[Way]) -> Way:
        """By the prices, and where ways are close by the clock."""
        if self.choose is not None:
            return self.choose(ways)
        timed = contenders(ways)
        if self.clock is None or len(timed) < 2 or self.source.size > LARGEST:
            return ways[0]
        threads, self.clock = self.clock, None  # once: a rewrite with less in it keeps the choice where it can

        def placed(way: Way) -> Path:
            return self._written(self.planner.made(way))

        found = fastest(timed, placed, self.source.model, self.sides, self.options.candidates, threads)
        return dataclasses.replace(found, cut=dataclasses.replace(found.cut, by="clock")) if found else ways[0]

    @property
    def _name(self) -> str:
        return self.source.path.name or "the model"

    def placed(self, _: Rewrite) -> Assembly:
        """The files of the last rewrite, as what the check runs."""
        assert self.plan is not None
        return Assembly(self._written(self.plan))

    def _written(self, plan: Plan) -> Path:
        """The files of a plan, in a temporary folder."""
        self.folder, self.manifest = written(plan, self.planner, self.source, self.sides, self.options.candidates)
        return Path(self.folder.name)

    def round(self) -> Assembly:
        """The files of the plan with states and rows in half precision, as what the check runs."""
        assert self.plan is not None
        plan = self.plan
        names = {t.name for t in (*plan.way.state, *plan.way.rows) if self.planner.is_half(t)}
        score, user, item = (
            dataclasses.replace(part, model=rounded(part.model, names, made)) if part is not None else None
            for part, made in ((plan.score, False), (plan.user, True), (plan.item, True))
        )
        assert score is not None
        self.plan = dataclasses.replace(plan, score=score, user=user, item=item)
        return Assembly(self._written(self.plan))
