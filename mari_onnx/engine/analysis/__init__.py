"""What is known of the elements of tensors of the new graph: bounds, intervals, and where NaN may come from.

In: tensors with the nodes that compute them. Out: numbers and arrays; no node is written. Rules ask before they use an
identity that holds for some values only. Imports `engine.ir`.
"""
