"""`python -m mrg.metrics FILE --scores NAMES`: any of the scores in one table, resumable."""
