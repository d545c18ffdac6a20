"""The commands: one module or package each."""

LIGHTNING = ("fit", "validate", "test", "predict", "export")
"""The commands that run on Lightning's command line."""
