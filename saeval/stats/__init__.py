"""Evidence summed over batches, and estimates with their standard errors."""
