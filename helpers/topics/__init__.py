"""The advanced topics, one file or two for each of the notebooks 05 to 08."""
