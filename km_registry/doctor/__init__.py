"""Looks whether records and files are what they should be, and mends what can be mended."""
