"""Several requests in one run: what an output of `--batched` takes and answers, and whether that equals separate runs.

In: a source for one user, and an output for several. Imports the rest of `parity`; nothing there imports this package.
"""
