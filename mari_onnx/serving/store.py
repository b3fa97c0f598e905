"""Where a service reads the rows of items: by id, many at once.

In: ids. Out: rows in the order of the ids, and which ids are not there. `ArrowStore` maps a file that
`mari-onnx precompute` wrote into memory: nothing to start, many processes share its pages. `redis_store.RedisStore`
asks a server.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from mari_onnx.errors import BadFeatures, MariError, MissingItems, ModelError, ModelNotFound
from mari_onnx.serving.row_format import HASH, ID, Column, Id, RowFormat, ids_from_arrow, ids_to_numpy, shown
from mari_onnx.splitting.rows import ItemRows

Compute = Callable[[Sequence[Id]], ItemRows]
"""Ids -> their rows, as `Ranker.items` makes them of features."""
Places = tuple[np.ndarray, np.ndarray]
NAMED = 10
"""Ids that a message names."""


@dataclass(frozen=True)
class FoundRows:
    """Rows of items. rows: in the order of the ids asked for. missing: ids that the store does not have."""

    rows: ItemRows
    missing: tuple[Id, ...]


class ItemStore(ABC):
    """Rows of items by id.

    Args:
        format: of the rows. count: items that there are; None where the store does not know.
        default: what an id that is not there gets: the row of an item that stands for it (`count` 1).
        compute: what makes the rows of ids that are not there, of their features. Without `default` and `compute`,
            an id that is not there is an error.
    """

    def __init__(
        self, format: RowFormat, count: int | None, default: ItemRows | None = None, compute: Compute | None = None
    ):
        if default is not None and compute is not None:
            raise ValueError("items that are missing get a default row, or are computed; not both")
        if default is not None and (default.count != 1 or default.key != format.key):
            raise BadFeatures(
                "the default row is not one row of the model whose rows the store has",
                "make it with the item model of the split: Ranker.items of one item's features",
            )
        self.format, self.count, self._compute = format, count, compute
        self._default = format.rows_first(default) if default is not None else None

    @property
    def key(self) -> str:
        """`Manifest.rows_key` of the model that made the rows."""
        return self.format.key

    @abstractmethod
    def find(self, ids: np.ndarray) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """Tensor -> `[len(ids), ..]`, the axis of the rows first, zeros where an id is not there; and whether each id
        is, bool `[len(ids)]`.

        Args:
            ids: of `row_format.ids_to_numpy`.
        """

    def get_many(self, ids: Sequence[Id] | np.ndarray) -> FoundRows:
        """The rows of items, in the order of `ids`; an id may come several times.

        Raises:
            MissingItems: ids are not there, and nothing says what they shall get.
            StoreUnavailable: the server does not answer. MariError: `compute` failed.
            UsageError, BadFeatures: ids are of no kind, or of another kind than those of the store.
        """
        wanted = ids_to_numpy(ids)
        arrays, here = self.find(wanted)
        if here.all():
            return FoundRows(self.format.item_rows(arrays, len(wanted)), ())
        absent = np.flatnonzero(~here)
        names = list(dict.fromkeys(shown(wanted[absent])))
        if self._default is not None:
            filled: Mapping[str, np.ndarray] = {n: np.repeat(v, len(absent), 0) for n, v in self._default.items()}
        elif self._compute is not None:
            try:
                made = self._compute(shown(wanted[absent]))
            except MariError:
                raise
            except Exception as error:
                raise MariError(
                    f"computing the rows of the items {_named(names)} failed: {type(error).__name__}: {error}",
                    "see the function that the store was opened with (compute=)",
                ) from error
            if made.count != len(absent) or made.key != self.key:
                raise BadFeatures(
                    "what computes missing rows did not answer one row of this model for each id",
                    "answer Ranker.items of the features of all ids, in their order",
                )
            filled = self.format.rows_first(made)
        else:
            raise MissingItems(f"the store has no rows of the items {_named(names)}", ids=names)
        for name, array in arrays.items():
            array[absent] = filled[name]
        return FoundRows(self.format.item_rows(arrays, len(wanted)), tuple(names))


class ArrowStore(ItemStore):
    """A file of rows, sorted by id and mapped into memory. Safe for several threads.

    Args:
        path: that `mari-onnx precompute` wrote. A newer file that is renamed over it is read by a new `ArrowStore`;
            this one keeps reading the old one.
        default, compute: see `ItemStore`.

    Attributes:
        said: what the file says of itself.

    Raises:
        ModelNotFound, ModelError: there is no such file, or it is none of ours.
    """

    def __init__(self, path: str | Path, default: ItemRows | None = None, compute: Compute | None = None):
        self.path = Path(path)
        try:
            reader = pa.ipc.open_file(pa.memory_map(str(path)))
            batches = [reader.get_batch(i) for i in range(reader.num_record_batches)]
        except FileNotFoundError as error:
            raise ModelNotFound(f"there is no store {path}", "mari-onnx precompute writes one") from error
        except (OSError, pa.ArrowInvalid) as error:
            raise ModelError(f"{path} is no store of item rows: {str(error).splitlines()[0]}") from error
        format, said = RowFormat.read(reader.schema, path)
        super().__init__(format, sum(b.num_rows for b in batches), default, compute)
        self.said: dict[str, Any] = said
        self._stacks = [_Stack(group, format.columns) for group in _alike([b for b in batches if b.num_rows])]

    def find(self, ids: np.ndarray) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """See `ItemStore.find`: a binary search among the blocks of the file, then within them."""
        arrays = self.format.empty(len(ids))
        here = np.zeros(len(ids), bool)
        for stack, at, places in self._places(ids):
            here[at] = True
            for column in self.format.columns:
                if len(at) == len(ids):
                    arrays[column.name] = stack.take(column, places)
                else:
                    arrays[column.name][at] = stack.take(column, places)
        return arrays, here

    def hashes(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """uint64 `[len(ids)]`, the hash of the features of which each row was made; and whether the id is there."""
        found, here = np.zeros(len(ids), np.uint64), np.zeros(len(ids), bool)
        for stack, at, places in self._places(ids):
            here[at], found[at] = True, stack.hashes[places]
        return found, here

    def blocks(self) -> Iterator[tuple[np.ndarray, dict[str, np.ndarray]]]:
        """All rows in the order of their ids, some at a time: ids `[n]`, and tensor -> `[n, ..]`."""
        for stack in self._stacks:
            every = np.arange(stack.ids.shape[1])
            for number, ids in enumerate(stack.ids):
                places = (np.full(len(every), number), every)
                yield ids, {c.name: stack.take(c, places) for c in self.format.columns}

    def _places(self, ids: np.ndarray) -> Iterator[tuple[_Stack, np.ndarray, Places]]:
        """For each stack: which of the ids it has, and where."""
        if not len(ids) or not self._stacks:
            return
        own = self._stacks[0].ids.dtype
        if ids.dtype.kind != own.kind:
            kinds = {"i": "integers", "S": "texts"}
            raise BadFeatures(f"ids are {kinds[ids.dtype.kind]}, and those of the store are {kinds[own.kind]}")
        which = np.arange(len(ids))
        if ids.dtype.itemsize > own.itemsize:
            # A wider text is nowhere; compared as it is, numpy would widen a copy of all ids of the store.
            which = np.flatnonzero(np.char.str_len(ids) <= own.itemsize)
            ids = ids.astype(own)
        for stack in self._stacks:
            hit, places = stack.search(ids[which])
            if len(hit):
                yield stack, which[hit], places


class _Stack:
    """Blocks of one length at equal distances in the file, as arrays `[blocks, rows, ..]` that share its memory.

    Searching and gathering then take one step of numpy for all blocks.
    """

    def __init__(self, batches: Sequence[Any], columns: Sequence[Column]):
        self.ids = _stacked([ids_from_arrow(batch.column(ID)) for batch in batches])
        self.hashes = _stacked([batch.column(HASH).to_numpy() for batch in batches])
        self._firsts = self.ids[:, 0].copy()
        self._texts = {c.name: [batch.column(c.name) for batch in batches] for c in columns if c.dtype == "string"}
        self._arrays = {c.name: _stacked([_column(b, c) for b in batches]) for c in columns if c.dtype != "string"}

    def search(self, ids: np.ndarray) -> tuple[np.ndarray, Places]:
        """Which ids are there, and their blocks and rows."""
        block = np.searchsorted(self._firsts, ids, side="right") - 1
        hit = np.flatnonzero(block >= 0)
        block, wanted = block[hit], ids[hit]
        low, high = np.zeros(len(hit), np.int64), np.full(len(hit), self.ids.shape[1] - 1)
        for _ in range(int(self.ids.shape[1] - 1).bit_length()):  # the last row whose id is not above the wanted one
            middle = (low + high + 1) >> 1
            above = self.ids[block, middle] > wanted
            high = np.where(above, middle - 1, high)
            low = np.where(above, low, middle)
        same = self.ids[block, low] == wanted
        return hit[same], (block[same], low[same])

    def take(self, column: Column, places: Places) -> np.ndarray:
        """Rows of a tensor, `[n, ..]`."""
        if column.name in self._arrays:
            return self._arrays[column.name][places]
        found = np.full((len(places[0]), *column.shape), "", object)
        for number in np.unique(places[0]):
            at = places[0] == number
            texts = self._texts[column.name][number].take(pa.array(places[1][at]))
            found[at] = np.array(texts.flatten().to_pylist(), object).reshape(len(texts), *column.shape)
        return found


def _column(batch: Any, column: Column) -> np.ndarray:
    array: np.ndarray = batch.column(column.name).values.to_numpy()
    return array.view(column.element).reshape(batch.num_rows, *column.shape)


def _alike(batches: Sequence[Any]) -> Iterator[list[Any]]:
    """Neighbours of one length, whose buffers lie at one distance."""
    group: list[Any] = []
    for batch in batches:
        steps = {tuple(np.diff([_addresses(b) for b in (x, y)], axis=0)[0]) for x, y in pairwise([*group[-2:], batch])}
        even = len(steps) <= 1 and all(len(set(step)) == 1 for step in steps)
        if group and not (even and group[0].num_rows == batch.num_rows):
            yield group
            group = []
        group.append(batch)
    if group:
        yield group


def _addresses(batch: Any) -> list[int]:
    """Of the numbers' buffers of all columns."""
    return [b.address for c in batch.columns if not pa.types.is_string(getattr(c.type, "value_type", c.type))
            for b in c.buffers() if b is not None]  # fmt: skip


def _stacked(arrays: Sequence[np.ndarray]) -> np.ndarray:
    """Arrays of one shape at equal distances in memory as one, without a copy."""
    first = arrays[0]
    start, *others = [each.__array_interface__["data"][0] for each in arrays]
    step = others[0] - start if others else first.nbytes
    return np.lib.stride_tricks.as_strided(first, (len(arrays), *first.shape), (step, *first.strides), writeable=False)


def _named(ids: Sequence[Id]) -> str:
    more = f" and {len(ids) - NAMED} more" if len(ids) > NAMED else ""
    return ", ".join(map(str, ids[:NAMED])) + more
