"""Puts this directory on the import path, so that every suite can use the modules it shares with others."""
