"""A checkpoint of any format, without torch: what it holds, whether it is whole, how two differ."""
