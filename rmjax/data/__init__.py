"""Sources to records to packed batches."""
