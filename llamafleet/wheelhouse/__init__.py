"""A folder with everything a host needs from the registries, checked by a manifest."""
