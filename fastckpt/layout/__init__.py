"""Bytes <-> records. Pure: no file is opened here and torch is not known."""
