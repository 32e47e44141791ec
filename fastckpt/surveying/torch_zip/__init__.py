"""What a damaged ``.pt`` (a zip archive of torch) still proves."""
