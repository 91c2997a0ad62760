"""What a plugin is made of: model, data, SAE, substitute, metric, quantity, value, report."""
