"""Pure NumPy: what happens to each row."""
