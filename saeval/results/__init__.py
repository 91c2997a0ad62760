"""What came out, and is the difference real: stored results, boards, paired tests, ranks, comparisons, reports."""
