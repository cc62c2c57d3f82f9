"""What a run leaves on disk: its directory, its logs, and the figures of a step."""
