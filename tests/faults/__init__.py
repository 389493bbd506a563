"""Runs in which a process is killed. The full-size ones are collected by `make test-faults` only."""
