"""The decoder: a graph compiled to modules, and how its nodes are computed."""
