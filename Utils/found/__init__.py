"""What a backdoor forces, shown: vectors, words, pictures."""
