"""What rules may ask about nodes that come later in the source.

In: the source graph. Out: which rows of an attention are masked throughout, and whether any output reads them.
Nothing is computed until a rule asks. Imports `engine.algebra` and what that imports.
"""
