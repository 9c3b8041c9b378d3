"""From example photos to a cache: encoding, keeping what was encoded, and choosing the parameters."""
