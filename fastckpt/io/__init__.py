"""Files: reading them exactly, and replacing them so that no crash loses one.

The only layer that opens files. It knows nothing about what is in them.
"""
