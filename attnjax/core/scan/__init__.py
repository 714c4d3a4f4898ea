"""Engine 4: diagonal scans and long convolutions."""
