"""Tools that all other packages use: processes, events, logs, files, drawing, counts of operations."""
