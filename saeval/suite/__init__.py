"""What a suite may say, and where in its YAML it says so."""
