"""A split model in a service: states of users in a cache, rows of items in a store, scores for requests.

In: the folder of a split (`mari-onnx split`) and a store of item rows (`mari-onnx precompute`). Out: outputs of the
source for each request. Imports `splitting`, and libraries for storage: pyarrow, cachetools, redis.

    service = Service(Ranker("ranking-v7"), open_store("items.arrow"), StateCache(max_bytes=1 << 30))
    answer = service.score(Request("user 17", item_ids=[4, 9], user=features, cross=features))
"""

from mari_onnx.serving.opening import open_store
from mari_onnx.serving.service import Answer, Request, Service
from mari_onnx.serving.states import StateCache
from mari_onnx.serving.store import ArrowStore, FoundRows, ItemStore
from mari_onnx.splitting.ranker import Ranker
from mari_onnx.splitting.rows import ItemRows, UserState

__all__ = [
    "Answer",
    "ArrowStore",
    "FoundRows",
    "ItemRows",
    "ItemStore",
    "Ranker",
    "Request",
    "Service",
    "StateCache",
    "UserState",
    "open_store",
]
