"""Move model weights between implementations and prove that nothing was lost."""

__version__ = "0.1.0"
