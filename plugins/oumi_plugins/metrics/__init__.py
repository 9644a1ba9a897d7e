"""Family metrics: figures computed while evaluation runs."""
