"""What may enter: the files of a stranger's model, read without executing or believing any."""
