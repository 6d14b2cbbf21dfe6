"""Measurements of speed, memory and agreement; see RESULTS.md."""
