"""What may be wrong with sides though nothing shows it: to be said, never acted on."""

from __future__ import annotations

from mari_onnx.model.signature import Signature
from mari_onnx.sides.guess import guess_side
from mari_onnx.sides.resolve import Sides


def unseen_tags(signature: Signature, sides: Sides) -> list[str]:
    """What no drawn request can show: an input tagged `user` that differs between candidates. Nothing where no input
    is tagged so; names that contradict their tag are named."""
    tagged = [each.name for each in signature.inputs if sides.side(each.name) == "user"]
    if not tagged and not any("user" in columns for columns in sides.columns.values()):
        return []
    notes = [
        "the check cannot tell whether an input is wrongly tagged user, because it draws such inputs equal for all "
        "candidates; recorded requests can show it (--data FILE)"
    ]
    for each in signature.inputs:
        side, looks = sides.side(each.name), guess_side(each.name)
        if side in ("user", "item") and looks is not None and looks != side and (side, looks) != ("item", "cross"):
            notes.append(f"{each.name} is tagged {side}, but its name looks like {looks}")
    return notes
