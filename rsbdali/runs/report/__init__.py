"""`rsbdali report`: one HTML page about runs."""
