"""Rounds of a federation over Flower: bytes are moved here, and the `catelier` program computes."""
