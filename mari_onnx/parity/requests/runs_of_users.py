"""A recorded run of several users (`--index`), taken apart into a request for each of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from mari_onnx.errors import UsageError
from mari_onnx.parity.layout import Layout


def by_user(
    arrays: Mapping[str, np.ndarray], index: str, layout: Layout, label: str
) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
    """The inputs of one request for each user who has candidates, in the order of the users, and what to call it.

    Args:
        arrays: user inputs that `index` picks rows of `[R, ..]`, inputs of candidates `[P, ..]`, and the index `[P]` or
            `[P, 1]`. Without the index they are one user's, and are answered as they are.
        layout: of the model without the index.

    Raises:
        UsageError: the index is not of integers or names a row that is not there, or inputs differ in their numbers of
            users or of candidates.
    """
    if index not in arrays:
        yield label, dict(arrays)
        return
    picks = np.asarray(arrays[index]).reshape(-1)
    known = [i.name for i in layout.signature.inputs if i.name in arrays]
    users = [name for name in known if layout.is_user(name) and name not in layout.whole]
    rowed = [name for name in known if not layout.is_user(name) and layout.axis_of(name) is not None]
    many = _length(arrays, users, layout, label, "users")
    _length({**arrays, index: picks}, [*rowed, index], layout, label, "candidates")
    if picks.dtype.kind not in "iu" or (picks.size and not (-many <= picks.min() and picks.max() < many)):
        raise UsageError(
            f"{label}: {index} has to hold integers from 0 to {many - 1}, the rows of {', '.join(users)}; it has "
            f"{picks.dtype} from {picks.min(initial=0)} to {picks.max(initial=0)}",
        )
    picks = np.where(picks < 0, picks + many, picks)
    for user in np.unique(picks):
        mine = np.flatnonzero(picks == user)
        found = {name: value for name, value in arrays.items() if name != index}
        found |= {name: np.take(arrays[name], [user], layout.axis_at(name)) for name in users}
        found |= {name: np.take(arrays[name], mine, layout.axis_at(name)) for name in rowed}
        found |= {name: np.full_like(found[name], len(mine)) for name in layout.sides.counts if name in found}
        yield f"{label}, row {user} of the users", found


def _length(arrays: Mapping[str, np.ndarray], names: list[str], layout: Layout, label: str, what: str) -> int:
    """The length that these inputs have along their axis of candidates, in which the source has the users' rows too."""
    at = {name: layout.axis_at(name) if layout.tagged(name) else 0 for name in names}
    lengths = {name: arrays[name].shape[at[name]] for name in names if arrays[name].ndim > at[name]}
    if len(set(lengths.values())) > 1:
        text = ", ".join(f"{name} {n}" for name, n in lengths.items())
        raise UsageError(f"{label}: the inputs differ in their number of {what}: {text}")
    return next(iter(lengths.values()), 0)
