"""The classification heads: one file per method, each with its reference form."""
