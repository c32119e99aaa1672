"""Helpers for all other subpackages: errors, optional imports, the version, moved names."""
