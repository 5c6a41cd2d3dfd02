"""Programs that measure."""

if __name__ != "rsbdali.bench":  # from the repository root, `import bench` would load a second copy
    raise ImportError("import this package as rsbdali.bench (pip install -e . makes it available)")
