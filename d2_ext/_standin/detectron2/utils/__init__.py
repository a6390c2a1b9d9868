"""Tools that are independent of detection: logging, events, communication, files."""
