"""Whole games with any policy: scores, lengths, a film."""
