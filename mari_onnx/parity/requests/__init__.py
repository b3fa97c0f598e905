"""Which requests a check runs: drawn, recorded, and further ones until every id and number is met.

In: the layout of the inputs and their domains. Out: `Request`s. Imports `parity.domains`.
"""
