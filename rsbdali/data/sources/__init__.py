"""Where images come from besides a folder: tar files and WebDataset shards, Parquet, tables of paths, object stores.

    location ──> storage ──> blobs          where: local files, or objects behind an fsspec URL; bytes by offset
                    │
                 source ──> Scan            what: tar, Parquet, table, objects; images with label, bytes and header
                    │
                 reader ──> encoded bytes   one image, in any order, from any thread

`rsbdali.data.index.ImageIndex` is the one interface above them.
"""
