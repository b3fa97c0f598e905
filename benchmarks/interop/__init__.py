"""The interop corpus: models of a public framework exported, optimized, checked and measured."""
