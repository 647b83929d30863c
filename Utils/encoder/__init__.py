"""What an encoder does: loading, running, splicing, measuring; its base, its corpus, its attention."""
