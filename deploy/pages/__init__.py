"""Pages that a browser shows: small servers on this machine alone, without a build step and without a request to anywhere."""
