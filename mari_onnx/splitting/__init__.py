"""Splitting a model at its rates: user.onnx, item.onnx, score.onnx and a manifest that says how they fit together.

In: a source, its sides, and how many bytes may be handed over. Out: a folder whose three models compute what the
source does, each part as often as what it depends on changes: once per user, once per item, once per candidate.
`rates` says what depends on what, `cut` where the graph is cut, `parts` makes models of it, `plan` chooses among cuts,
`manifest` describes the folder, `assembly` runs its models as one (for the check), `ranker` runs them in a service,
`make` does all of it. Imports the engine, prices, the check, and the API below.
"""
