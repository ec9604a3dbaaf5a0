"""Small programs that use the library alone. `one_ticket` is the paper's theorem in one file."""
