"""The web page: server-rendered HTML over the same services and the one access rule as the API."""
