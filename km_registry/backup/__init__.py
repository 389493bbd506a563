"""A copy of everything that cannot be made anew, taken while the server runs, and put back."""
