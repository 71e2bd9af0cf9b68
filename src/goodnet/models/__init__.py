"""Nets: what they expect, how strangers' files are read safely, and how nets are cut."""
