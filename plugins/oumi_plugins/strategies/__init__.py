"""Family strategies: how a step is done on the hardware at hand."""
