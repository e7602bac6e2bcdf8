"""Other libraries' models under fastguide's samplers; each module imports its library lazily."""
