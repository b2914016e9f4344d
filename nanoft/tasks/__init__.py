"""Fine-tuning: tables, examples, features, heads, predictions, metrics."""
