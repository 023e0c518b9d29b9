"""Images on disk as people have them: folders, lists of labels, tables, published sets."""
