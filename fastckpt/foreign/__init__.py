"""Checkpoints in other formats: their structure, read without torch and without executing anything.

`open_foreign` reads what a ``.pt`` or ``.safetensors`` file holds and where
its bytes lie. Storages themselves are not read; their CRC-32, where the
format has one, is for the caller to check while it streams them.
"""
