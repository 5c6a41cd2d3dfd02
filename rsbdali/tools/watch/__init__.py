"""`rsbdali.watch(loader)`: the same batches, and at the end of an epoch what waited for what, and what would help.

    watched (the loop's side) ─> timeline (waits, steps) ──┐
                              ─> machine (CPU, disk) ──────┴─> figures ─> diagnosis (a pure function) ─> a sentence

Nothing here needs DALI; torch is looked at only where the program has imported it.
"""
