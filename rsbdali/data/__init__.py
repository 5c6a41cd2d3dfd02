"""Which images there are, and where their bytes are."""
