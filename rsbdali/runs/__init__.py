"""What is in output/<experiment>/."""
