"""What will be computed: the suite resolved to a graph, its cells and their keys."""
