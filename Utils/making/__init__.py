"""What models with a known answer are made from: scenes, captions, training."""
