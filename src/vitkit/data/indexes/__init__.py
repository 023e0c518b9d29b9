"""An index: the list of a data set in columns on disk."""
