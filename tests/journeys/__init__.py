"""The ways that people go with this tool, each as the programs that they type."""
