"""What every room may use: errors, optional imports, the version, and names that moved."""
