"""Where images lie: folders, tar shards, Parquet files, lists, object stores."""
