"""Random ranking graphs, rewritten and compared: `graphs` draws, `oracle` judges, `run` searches for hours."""
