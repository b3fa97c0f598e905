"""What is known of tensors of the new graph: how large their elements can be, and what made them.

In: tensors with the nodes that compute them. Out: bounds, intervals and normalizations.
Imports `engine.ir`.
"""
