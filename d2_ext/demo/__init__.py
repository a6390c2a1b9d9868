"""A small local web page to try trained detectors on images."""
