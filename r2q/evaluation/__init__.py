"""Scores of packed models: lm-eval's tasks, token perplexity, and what each number is worth (errors, chance)."""
