"""The report of a training run: scores, tables and figures."""
