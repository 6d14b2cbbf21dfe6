"""The command `compare`: models that are already there, layer by layer, on any texts.

`options` and `texts` import no torch, so that the command can answer a mistake at once.
"""
