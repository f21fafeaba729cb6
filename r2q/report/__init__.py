"""Scores, tables, comparisons and figures: reads JSON and CSV, never imports torch."""
