"""From tensors to a file: `fastckpt.save` and `fastckpt.save_async`."""
