"""The same mathematics, faster or on many devices."""
