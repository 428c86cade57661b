"""The advanced topics: a file or two for each of the notebooks 05 to 08, and smaller vectors."""
