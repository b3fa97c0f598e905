"""What a rule may ask about nodes of the source that come later, or about the source at one candidate.

In: the source graph. Out: whether a Squeeze keeps the candidate axis, what masks are, which rows no output reads.
Nothing is computed until a rule asks. Imports `engine.algebra` and what that imports.
"""
