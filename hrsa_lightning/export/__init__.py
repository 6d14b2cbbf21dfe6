"""The work of the `export` command: a finished run becomes a folder for sentence-transformers."""
