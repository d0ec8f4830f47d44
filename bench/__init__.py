"""Measures appends and loads side by side: chatledger, the floor, and MAX(sequence) + 1."""
