"""Lion for oumi-kernel."""
