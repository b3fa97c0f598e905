"""Opens a store of item rows, wherever it is."""

from __future__ import annotations

from pathlib import Path

from mari_onnx.serving.store import ArrowStore, Compute, ItemStore
from mari_onnx.splitting.rows import ItemRows


def open_store(where: str | Path, default: ItemRows | None = None, compute: Compute | None = None) -> ItemStore:
    """The store of a file, or of a URL that begins with redis://, rediss:// or unix://.

    Args:
        default, compute: what ids get that are not there; see `ItemStore`.
    """
    if str(where).startswith(("redis://", "rediss://", "unix://")):
        from mari_onnx.serving.redis_store import RedisStore

        return RedisStore(str(where), default=default, compute=compute)
    return ArrowStore(where, default, compute)
