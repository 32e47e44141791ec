"""Which steps of a directory are kept, whoever wrote them, and copies of the whole ones."""
