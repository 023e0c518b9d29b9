"""What is done to training images once they have their size, a batch at a time."""
