"""Facts that a rewrite assumes because a run can verify them, recorded so that the check runs exactly that case.

Some facts matter at one number of candidates alone, and proving them would take more code than all rules that need
them. An example: a Squeeze without axes drops the candidate axis where N is 1. A rule assumes such a fact with
`Assumptions.make`. The caller of the rewrite runs source and new model there, and rewrites again without an assumption
that does not hold.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from mari_onnx.engine.ir.value import Decline

UNCHECKED = "only running both models shows whether that matters, and no check is made"
IN_A_BODY = "only running both models shows whether that matters, and a run may not reach this subgraph"


@dataclass(frozen=True)
class Assumption:
    """A fact that a rewrite needs, and where a run tells whether it holds.

    Attributes:
        node: name of the source node whose rule assumed it.
        output: the node's first output.
        what: what is assumed.
        why: why it may not hold.
        candidates: the N at which outputs of source and rewrite, shapes included, tell.
    """

    node: str
    output: str
    what: str
    why: str
    candidates: int = 1


@dataclass
class Assumptions:
    """What one rewrite may assume, and what it did assume.

    Attributes:
        allowed: whether the caller verifies assumptions by running both models.
        declined: reasons, by name of the source node for which nothing is assumed.
        made: the assumptions, in the order of the source nodes.
    """

    allowed: bool
    declined: Mapping[str, str]
    made: list[Assumption] = field(default_factory=list)

    def make(self, assumption: Assumption) -> None:
        """Records the assumption. Raises `Decline` with the reason where it may not be made: the caller declined it, or
        nobody verifies it.
        """
        reason = UNCHECKED if not self.allowed else self.declined.get(assumption.node)
        if reason is not None:
            raise Decline(f"{assumption.why}: {reason}")
        self.made.append(assumption)
