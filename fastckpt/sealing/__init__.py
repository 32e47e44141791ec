"""Sealing files, and checking seals."""
