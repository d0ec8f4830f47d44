"""Copies of sessions in Redis or Valkey."""
