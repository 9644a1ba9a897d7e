"""Family trackers: where figures go."""
