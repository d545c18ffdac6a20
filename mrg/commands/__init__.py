"""The commands: one module or package per verb."""

LIGHTNING = ("fit", "validate", "test", "predict", "export")
"""The other commands, which are Lightning's."""
