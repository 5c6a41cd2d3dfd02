"""What lies in output/<experiment>/."""
