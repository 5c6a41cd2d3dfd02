"""DALI graphs: they execute a plan and draw no random number."""

if __name__ != "rsbdali.pipelines":  # from the repository root, `import pipelines` would load a second copy
    raise ImportError("import this package as rsbdali.pipelines (pip install -e . makes it available)")
