"""Results as fetched from the hosts, and what is said of them."""
