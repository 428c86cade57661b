"""What starts and keeps a run: parameters, an opened run, papermill over the notebooks, several processes."""
