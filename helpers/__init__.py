"""The method, in the order of the course; every idea here is first shown in a notebook.

    dataset, answers               questions, passages, judgements; whether a passage holds an answer
    profiles, encoder              prefixes, pooling and length of a model; texts to vectors
    retrieval                      BM25 and dense search, runs
    strategies, negatives          ways to rank candidates; the pool of hard negatives
    batches, loss, gradients       training rows and masks; InfoNCE; the gradient of large batches
    training, evaluation           the loop; Hit@K

The rooms beside it: `topics` (one file per later notebook), `reporting` (tables, plots, significance),
`importing` (other formats, fetched data), `running` (papermill, parameters), and `base` (files, errors, checks).
"""
