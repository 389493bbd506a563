"""From an uploaded file to text: what it is, and its text, read by a child process within limits."""
