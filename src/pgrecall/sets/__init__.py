"""Recovery sets: how one comes back, and whether all of it did."""
