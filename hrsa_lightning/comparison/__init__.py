"""Models that are already there, compared layer by layer on any texts: the work of `compare`.

Importing this package, `naming`, `texts` and `options` imports no torch, so that the command can
answer a mistake at once; `study` does the work.
"""
