"""One file for each question that is answered by training: what is compared, and how it is told."""
