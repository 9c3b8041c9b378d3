"""Measures bundles against their rivals: speed, memory, cold start and accuracy, on the shipped file."""
