"""How the client talks to Postgres."""
