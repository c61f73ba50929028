"""Checkpoints: directories that exist under their name only if they are complete, and are verified before they load."""
