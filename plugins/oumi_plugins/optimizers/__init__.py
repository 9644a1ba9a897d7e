"""Family optimizers."""
