"""Sums files beside sealed files, and whether a file is as it was sealed."""
