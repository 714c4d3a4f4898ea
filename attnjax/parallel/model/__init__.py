"""What strategies cost, predicted: bytes, balance, time.  Nothing here runs attention."""
