"""The only layer that knows torch: states to bytes and back."""
