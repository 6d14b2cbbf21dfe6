"""The work of the `plan` command: what a recipe needs, from shapes alone."""
