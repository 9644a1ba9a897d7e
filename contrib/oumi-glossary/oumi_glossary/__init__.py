"""A glossary as a dataset, and a metric on rare tokens."""
