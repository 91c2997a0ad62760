"""The page of results: one HTML file with its tables, charts, scripts and data, which opens without a network."""
