"""Images in, batches out: sources, decoding, transforms and the pipeline that feeds a net."""
