"""The fused GPU passes, one a file, each with its plain torch reference."""
