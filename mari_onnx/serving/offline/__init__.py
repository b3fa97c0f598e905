"""Work on many machines without requests that wait, by Ray Data: rows of a catalogue, scores of recorded requests, and
parity over them.

In: the folder of a split (or model files) and tables, under paths that all machines can read. Out: the same store
that `precompute` writes, scores as a Ray dataset, the result of a check. Ray hands work out, makes again what a lost
machine had, and keeps memory in bounds; where no cluster is running, it is started on this machine. Imports `serving`,
`splitting`, `parity`, and ray.
"""

from mari_onnx.serving.offline.scoring import score

__all__ = ["score"]
