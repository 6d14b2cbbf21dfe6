"""Scores of embedding models on retrieval and MTEB tasks, and whether models differ."""
