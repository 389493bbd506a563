"""`km train-ke`: documents with questions in, a Knowledge Extractor out."""
