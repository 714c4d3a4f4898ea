"""Every op has met every law as both are today, says the ledger; and the ledger notices changes."""
