"""Triggers and the engine that inverts them, many labels at once."""
