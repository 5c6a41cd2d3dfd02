"""The recipes as YAML files, one experiment a file."""

if __name__ != "rsbdali.recipes":  # from the repository root, `import recipes` would load a second copy
    raise ImportError("import this package as rsbdali.recipes (pip install -e . makes it available)")
