"""Other people's formats and where data comes from: readers, leakage between splits, fetched sources."""
