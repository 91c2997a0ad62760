"""The schema of suites, and the places of their parts in YAML files."""
