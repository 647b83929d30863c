"""What a reader of the paper may skip: commands lie here, libraries in rooms by the question they answer."""
