"""`rsbdali doctor`: whether this machine can train."""
