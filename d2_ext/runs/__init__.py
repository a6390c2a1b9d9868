"""What surrounds a run: its config and data, the checks before it, its processes, and what it leaves behind."""
