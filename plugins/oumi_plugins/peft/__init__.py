"""Family peft: adapters that train in the place of a model's own weights."""
