"""What people look at: the report, comparisons, intervals and tests, plots, and what looks wrong."""
