"""The CPU executor: DALI reads and decodes, torch and NumPy do the rest."""
