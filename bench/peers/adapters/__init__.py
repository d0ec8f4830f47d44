"""A store a file, called as its makers mean it to be. Each runs in an environment of its own."""
