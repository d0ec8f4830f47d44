"""What is in the ledger, and what a caller changes in it. Without I/O."""
