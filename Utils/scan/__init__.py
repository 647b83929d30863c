"""What a scan compares, finds and concludes, in numbers."""
