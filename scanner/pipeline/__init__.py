"""The stages of one run (DESIGN section 1), each a plain function; flows and the `scan` command compose them."""
