"""Codecs: how the raw bytes of one chunk are stored. One file per codec."""
