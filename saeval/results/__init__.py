"""Stored results, and everything that reads them: boards, paired tests, ranks, comparisons and reports."""
