"""Family datasets: where rows come from."""
