"""Plans a run: resolves the suite to a graph, its cells and their keys."""
