"""Computes a plan: streams the rows in passes, sums the evidence, and concludes each cell."""
