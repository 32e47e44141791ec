"""Leaf digests where the bytes are: XXH3-64 of 16 KiB leaves, computed on the device.

``leaf_hash`` has the Triton kernels, ``launch`` runs them, and ``dispatch``
says which engine is live on a device and why. Triton is optional: only
``leaf_hash`` imports it.
"""
