"""Many nets, one summary: where they are found, the process of each, what is taken over from an earlier run."""
