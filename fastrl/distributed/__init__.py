"""Games beyond this process: collectors on this machine or on a cluster."""
