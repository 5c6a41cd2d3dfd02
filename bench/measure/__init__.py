"""Clocks: rates, times, the GPU's own time."""
