"""The decoder: a graph compiled to modules, and fast ways of computing its nodes."""
