"""The ground under everything: files, errors, checks of rows, columns, devices, checkpoints and model files."""
