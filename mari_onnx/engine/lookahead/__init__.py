"""What a rule may ask about nodes of the source that come later.

In: the source graph. Out: what masks are, which rows no output reads.
Nothing is computed until a rule asks. Imports `engine.algebra` and what that imports.
"""
