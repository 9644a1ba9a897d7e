"""Family models: tokenizers and models."""
